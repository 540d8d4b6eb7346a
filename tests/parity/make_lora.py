"""Make ``cases/lora_peft.npz``: ``python -m tests.parity.make_lora``, with ``peft`` installed (recorded with 0.21.2).

`peft` wraps a small encoder, in each of two ways, and its updates get random values. Recorded are the keys and weights
as a fine-tuned file has them, and the features of the wrapped encoder, whose updates are not merged.
"""

from __future__ import annotations

import numpy as np
import torch

from bids_app.model.encoder import Encoder, EncoderConfig
from tests.parity.cases import FOLDER

CONFIG = EncoderConfig(img_size=(24, 24, 24, 4), embed_dim=8, depths=(1, 2))
TARGETS = ["in_proj", "x_proj", "out_proj", "linear1", "linear2", "fc", "reduction"]
OPTIONS = {
    "plain": {"r": 4, "lora_alpha": 16},
    "rslora": {"r": 2, "lora_alpha": 3, "use_rslora": True},
    "saved": {"r": 4, "lora_alpha": 8, "modules_to_save": ["norm2"]},
}
"""Options of `peft.LoraConfig` by case."""


def main() -> None:
    """Write the file."""
    from peft import LoraConfig, get_peft_model, inject_adapter_in_model

    recorded: dict[str, np.ndarray] = {}
    for name, options in OPTIONS.items():
        torch.manual_seed(0)
        encoder, config = Encoder(CONFIG).eval(), LoraConfig(target_modules=TARGETS, **options)
        wrapped = inject_adapter_in_model(config, encoder) if name == "rslora" else get_peft_model(encoder, config)
        with torch.no_grad():
            for key, parameter in wrapped.named_parameters():
                if "lora_" in key or "modules_to_save" in key:
                    parameter.add_(0.05 * torch.randn_like(parameter))
        clips = torch.randn(2, 1, 24, 24, 24, 4, generator=torch.Generator().manual_seed(1))
        features = wrapped.eval()(clips)
        recorded[f"{name}/features"] = features.detach().numpy()
        recorded |= {f"{name}/weight:{key}": value.numpy() for key, value in wrapped.state_dict().items()}
    np.savez_compressed(FOLDER / "lora_peft.npz", **recorded)


if __name__ == "__main__":
    main()
