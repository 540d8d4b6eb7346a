// The viewer is loaded when it is wanted: its scripts have 2.3 MB, and the figures do without.
{
  const place = document.querySelector(".viewer"), button = place?.querySelector("button");
  const say = (text) => { place.querySelector("[role=status]").textContent = text; };
  const hasWebgl = () => {
    try { return Boolean(document.createElement("canvas").getContext("webgl2")); } catch { return false; }
  };
  if (place && !hasWebgl()) say("This browser has no WebGL 2, which the viewer needs; the figures below do not.");
  else if (place) {
    button.hidden = false;
    button.addEventListener("click", () => {
      const facts = JSON.parse(document.getElementById("viewer-facts").textContent);
      const script = document.createElement("script");
      const failed = (text) => { button.disabled = false; say(` ${text}`); };
      button.disabled = true;
      say(" Loading …");
      script.src = facts.scripts.viewer;
      script.onerror = () => failed(`${facts.scripts.viewer} could not be loaded: keep the folder report_assets beside this page.`);
      script.onload = () => openNeurostormViewer(place, facts).catch((error) => failed(error.message));
      document.head.append(script);
    });
  }
}
