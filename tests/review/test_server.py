"""Server of the review: what it serves, what it refuses, and that ratings are in the table at once."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from starlette.testclient import TestClient

from bids_app.errors import BadDataError, NoInputError, TemporaryError, UsageError
from bids_app.outputs.ratings import hash_figure, ratings_path, read_ratings
from bids_app.review.page import figure_version
from bids_app.review.server import listen, make_app

NAME = "sub-01_task-go_desc-coreg_bold"
ADDRESS = f"out/sub-01/figures/{NAME}.svg"
TOKEN = "token"


@pytest.fixture
def client(out):
    """Client of the server of the rater AB."""
    return client_of(out)


def client_of(out, rater="AB"):
    return TestClient(make_app(out, rater, TOKEN), base_url=f"http://127.0.0.1/{TOKEN}/", follow_redirects=False)


def request_of(out, name=NAME, **changes):
    path = out / name.partition("_")[0] / "figures" / f"{name}.svg"
    content = {"figure": name, "rating": "fail", "tags": ["motion"], "note": "", "replaces": ""}
    return content | {"version": figure_version(path)} | changes


def test_the_page_and_its_figures_are_served_under_the_token_only(client):
    assert client.get("").status_code == 200
    assert client.get(ADDRESS).headers["content-type"] == "image/svg+xml"
    for address in ("/", f"/{ADDRESS}", "/wrong/", f"/wrong/{ADDRESS}", f"/{TOKEN}"):
        assert client.get(f"http://127.0.0.1{address}").status_code == 404
    assert client.post("http://127.0.0.1/wrong/rate", json={}).status_code == 404


def test_other_hosts_are_refused(client):
    assert client.get("", headers={"Host": "evil.example"}).status_code == 400


@pytest.mark.parametrize(
    "path",
    [
        "../secret.svg",
        "..%2fsecret.svg",
        "%2e%2e/secret.svg",
        "sub-01/figures/../../../secret.svg",
        "/etc/passwd",
        "dataset_description.json",
        "sub-01/figures/sub-01_task-go_desc-sexpredictions_bold.svg",
        f"sub-02/figures/{NAME}.svg",
        "sub-01/figures/",
        "sub-01/figures/%00.svg",
    ],
)
def test_only_figures_of_the_review_are_served(out, client, path):
    (out.parent / "secret.svg").write_text("<svg/>")
    (out / "dataset_description.json").write_text("{}")
    assert client.get(f"out/{path}").status_code == 404


def test_links_to_files_outside_the_output_folder_are_not_served(out):
    secret = out.parent / "secret.svg"
    secret.write_text("<svg/>")
    figure = out / "sub-01" / "figures" / f"{NAME}.svg"
    figure.unlink()
    figure.symlink_to(secret)
    inside = out / "sub-01" / "figures" / "sub-01_task-go_desc-norm_bold.svg"
    (out / "store.svg").write_text("<svg>inside</svg>")
    inside.unlink()
    inside.symlink_to("../../store.svg")
    folder = out / "sub-03"
    (out.parent / "elsewhere" / "figures").mkdir(parents=True)
    (out.parent / "elsewhere" / "figures" / "sub-03_desc-norm_T1w.svg").write_text("<svg/>")
    folder.symlink_to(out.parent / "elsewhere")
    client = client_of(out)
    assert client.get(ADDRESS).status_code == 404
    assert client.get("out/sub-03/figures/sub-03_desc-norm_T1w.svg").status_code == 404
    assert client.get(f"out/sub-01/figures/{inside.name}").text == "<svg>inside</svg>"


def test_named_pipes_and_removed_figures_do_not_stop_the_server(out, client):
    figure = out / "sub-01" / "figures" / f"{NAME}.svg"
    figure.unlink()
    assert client.get(ADDRESS).status_code == 404
    os.mkfifo(figure)
    assert client.get(ADDRESS).status_code == 404


def test_policies_allow_nothing_from_the_network(client):
    page, figure = client.get("").headers, client.get(ADDRESS).headers
    policy = page["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy.replace("style-src 'unsafe-inline'", "")
    assert "http" not in policy
    assert figure["content-security-policy"].startswith("default-src 'none'")
    assert "sandbox" in figure["content-security-policy"]
    for headers in (page, figure):
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
    assert page["cache-control"] == "no-store"


def test_a_rating_is_in_the_table_when_it_is_answered(out, client):
    answer = client.post("rate", json=request_of(out, note="<b>ü</b>\n\t"))
    stored = read_ratings(ratings_path(out, "AB"))[NAME]
    assert answer.status_code == 200
    assert (stored.rating, stored.tags, stored.note) == ("fail", ("motion",), "<b>ü</b>")
    assert stored.figure_hash == hash_figure(out / "sub-01" / "figures" / f"{NAME}.svg")
    assert answer.json()["current"] == {
        "rating": "fail", "tags": ["motion"], "note": "<b>ü</b>", "time": stored.rated_at
    }  # fmt: skip
    empty = request_of(out, rating="", tags=[], replaces=stored.rated_at)
    assert client.post("rate", json=empty).json() == {"current": None}
    assert read_ratings(ratings_path(out, "AB")) == {}


def test_a_rating_of_another_window_is_reported_instead_of_replaced(out, client):
    client.post("rate", json=request_of(out))
    answer = client.post("rate", json=request_of(out, rating="pass"))
    assert answer.status_code == 409
    assert answer.json()["current"]["rating"] == "fail"
    assert read_ratings(ratings_path(out, "AB"))[NAME].rating == "fail"


def test_a_figure_that_changed_since_it_was_loaded_cannot_be_rated(out, client):
    request = request_of(out)
    figure = out / "sub-01" / "figures" / f"{NAME}.svg"
    figure.write_text("<svg/>")
    os.utime(figure, (1, 1))
    answer = client.post("rate", json=request)
    assert answer.status_code == 409
    assert "Reload" in answer.json()["message"]
    assert not ratings_path(out, "AB").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"figure": "sub-09_desc-norm_T1w"}, {"figure": "../x"}, {"rating": "perfect"}, {"tags": ["x"]}, {"tags": 1},
        {"note": 1}, {"figure": ["x"]}, {"tags": [["motion"]]},
    ],
)  # fmt: skip
def test_invalid_ratings_are_refused(out, client, changes):
    assert client.post("rate", json=request_of(out, **changes)).status_code == 400
    assert not ratings_path(out, "AB").exists()


def test_requests_that_are_no_json_or_too_large_are_refused(out, client):
    assert client.post("rate", content="{}").status_code == 415
    assert client.post("rate", content="[" * 9999, headers={"content-type": "application/json"}).status_code == 400
    assert client.post("rate", json=[]).status_code == 400
    assert client.post("rate", json=request_of(out, note="x" * 2**16)).status_code == 413


def test_a_table_that_is_damaged_while_the_server_runs_is_reported_and_kept(out, client):
    client.post("rate", json=request_of(out))
    ratings_path(out, "AB").write_text("damaged")
    answer = client.post("rate", json=request_of(out, rating="pass"))
    assert answer.status_code == 503
    assert "damaged table" in answer.json()["message"]
    assert client.get("").status_code == 500
    assert ratings_path(out, "AB").read_text() == "damaged"


def test_a_damaged_table_stops_the_start(out):
    ratings_path(out, "AB").parent.mkdir()
    ratings_path(out, "AB").write_text("damaged")
    with pytest.raises(BadDataError, match="rater-AB_ratings"):
        make_app(out, "AB", TOKEN)


def test_two_raters_at_once_lose_nothing(out):
    clients = {rater: client_of(out, rater) for rater in ("AB", "CD")}
    names = [f"sub-0{i}_task-{task}_desc-{desc}_bold" for i in (1, 2) for task in ("go", "rest") for desc in
             ("coreg", "norm", "carpet")]  # fmt: skip
    with ThreadPoolExecutor(6) as pool:
        jobs = [
            pool.submit(clients[rater].post, "rate", json=request_of(out, name)) for name in names for rater in clients
        ]
    assert {job.result().status_code for job in jobs} == {200}
    assert all(set(read_ratings(ratings_path(out, rater))) == set(names) for rater in clients)


def test_ratings_of_an_earlier_session_are_on_the_page_and_outdated_ones_are_marked(out, client):
    client.post("rate", json=request_of(out, note="</script><script>alert(1)</script>"))
    text = client.get("").text
    assert '"rating":"fail"' in text
    assert "outdated" not in text.partition('id="content">')[2].partition("</script>")[0]
    assert "<script>alert" not in text
    figure = out / "sub-01" / "figures" / f"{NAME}.svg"
    figure.write_text("<svg/>")
    os.utime(figure, (4e9, 4e9))
    assert '"outdated":true' in client.get("").text


def test_a_port_in_use_and_an_invalid_port_are_errors():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(TemporaryError, match="in use"):
            listen(other.getsockname()[1])
    with pytest.raises(UsageError, match="--port"):
        listen(70000)


def test_only_this_machine_can_connect():
    with listen(0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


def test_no_figures_are_an_error(tmp_path):
    with pytest.raises(NoInputError):
        make_app(tmp_path, "AB", TOKEN)


def start_command(out, *options):
    call = [sys.executable, "-m", "bids_app.cli.review", str(out), "--rater", "AB", *options]
    return subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_command_serves_until_it_is_interrupted(out):
    process = start_command(out)
    try:
        address = process.stdout.readline().split()[-1]
        with urllib.request.urlopen(address) as answer:
            assert b"sub-01_task-go" in answer.read()
        assert len(address.split("/")[-2]) >= 32  # the token
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert "all ratings are stored" in output


def rate_by_new_server(out, names, results):
    with client_of(out) as client:
        results.put([client.post("rate", json=request_of(out, name)).status_code for name in names])


def test_two_servers_of_one_rater_lose_nothing(out):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    halves = [[f"sub-0{i}_task-{task}_desc-{desc}_bold" for task in ("go", "rest") for desc in ("coreg", "norm")]
              for i in (1, 2)]  # fmt: skip
    processes = [context.Process(target=rate_by_new_server, args=(out, half, results)) for half in halves]
    for process in processes:
        process.start()
    codes = [code for _ in processes for code in results.get(timeout=120)]
    for process in processes:
        process.join()
    assert codes == [200] * 8
    assert set(read_ratings(ratings_path(out, "AB"))) == {name for half in halves for name in half}
