"""What the workers of a run need: imported once by the fork server, whose memory the workers share.

Nothing here may start threads, since workers are forked.
"""

import gc

gc.disable()  # takes a fifth of the time of imports, and modules stay until the end

import deepbet.bet  # noqa: E402, F401

from bids_app.workflow import method, pool  # noqa: E402, F401

gc.freeze()  # so that workers do not copy the memory of modules when they look for garbage
gc.enable()
