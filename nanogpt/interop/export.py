"""Export a trained model for transformers or nanoGPT, to a folder that appears when it is complete."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import AdamW
from typing_extensions import assert_never

from nanogpt import tokenizer as tokenizers
from nanogpt.config import ExportConfig, ModelConfig, TrainConfig
from nanogpt.errors import BadInput
from nanogpt.files import write_file
from nanogpt.interop.architecture import SIZES
from nanogpt.interop.export_config import check_nanogpt_form, to_hf_config
from nanogpt.interop.export_folder import ExportFolder, check_export_folder, stage_export
from nanogpt.interop.hf_tokenizer import write_tokenizer
from nanogpt.interop.load_model import TrainedModel, load_trained
from nanogpt.interop.names import Tensors, add_norm_gains, cut_padding, to_gpt2, to_llama
from nanogpt.interop.pickle_import import write_meta
from nanogpt.interop.verify_export import verify_read_back, verify_with_transformers
from nanogpt.model.gpt import GPT
from nanogpt.run_directory import find_run
from nanogpt.tokenizer import CharTokenizer


def export_model(config: ExportConfig) -> int:
    """Write the model to `out` and return 0. Raises BadInput for a model the format can't express, or a used folder."""
    folder = check_export_target(config)
    trained = load_trained(config, torch.device("cpu"))
    match config.format:
        case "hf":
            to_hf_config(trained.model.config)
            writer = write_hf
        case "nanogpt":
            check_nanogpt_form(trained.model.config)
            writer = write_nanogpt
        case _:
            assert_never(config.format)
    with stage_export(folder, {"format": config.format}) as partial:
        writer(trained, partial, config)
        verified = verify_export(trained, partial, config)
    print(f"{folder.path}: {', '.join(sorted(path.name for path in folder.path.iterdir()))}")
    print(verified)
    return 0


def verify_export(trained: TrainedModel, folder: Path, config: ExportConfig) -> str:
    """Compare the written model with the one in memory and return the result as a sentence. Raises LabError."""
    if not config.verify:
        return "not compared with the model (verify=false)"
    if config.format == "hf":
        return verify_with_transformers(trained.model, trained.tokenizer, folder)
    return verify_read_back(trained.model, trained.tokenizer, folder / "ckpt.pt")


def check_export_target(config: ExportConfig) -> ExportFolder:
    """Return the folder to write. Raises BadInput if it exists, unless it is an export that may be replaced."""
    default: Path | None = None
    sources: dict[str, Path] = {}
    if config.init_from is None:
        run = find_run(config.run, config.runs_dir).path
        default, sources = run / config.format, {"the run": run}
    elif os.path.exists(config.init_from):
        sources = {"the weights that are read": Path(config.init_from)}
        if os.path.isfile(config.init_from):
            sources["the folder of the weights that are read"] = Path(config.init_from).parent
    out = default if config.out is None else Path(config.out)
    if out is None:
        raise BadInput("out=null: needs a folder, e.g. out=exported")
    inside_run = default and Path(os.path.realpath(default))
    return check_export_folder(out, config.overwrite, inside_run, sources)


def collect_weights(model: GPT) -> Tensors:
    return add_norm_gains({name: parameter.detach() for name, parameter in model.named_parameters()}, model.config)


def write_hf(trained: TrainedModel, folder: Path, config: ExportConfig) -> None:
    """Write config.json, model.safetensors and the tokenizer, for AutoModelForCausalLM and AutoTokenizer."""
    model = trained.model.config
    about = to_hf_config(model)
    end = trained.tokenizer.end_of_text
    about |= {"bos_token_id": end, "eos_token_id": end}  # null: none; an absent key would mean GPT-2's id
    rename = to_gpt2 if about["model_type"] == "gpt2" else to_llama
    folder.mkdir(exist_ok=True)
    save_file(rename(collect_weights(trained.model), model), folder / "model.safetensors", {"format": "pt"})
    write_tokenizer(trained.tokenizer, folder, model.block_size)
    write_file(folder / "config.json", json.dumps(about, indent=2) + "\n")


def write_nanogpt(trained: TrainedModel, folder: Path, config: ExportConfig) -> None:
    """Write ckpt.pt, with AdamW's state if there is one, and for a character tokenizer nanoGPT's meta.pkl."""
    model = trained.model.config
    check_nanogpt_form(model)
    weights = cut_padding(collect_weights(trained.model), model)
    sizes = {name: getattr(model, name) for name in (*SIZES, "bias")}
    content: dict[str, Any] = {
        "model": weights | {"lm_head.weight": weights["transformer.wte.weight"]},
        "model_args": sizes | {"dropout": model.dropout},
    }
    if trained.run is not None:
        loaded, run_config = trained.run.checkpoints.load(config.checkpoint), trained.run.read_config()
        if run_config.optimizer.name == "adamw":
            content["optimizer"] = optimizer_state(weights, loaded.optimizer, model, run_config)
        else:
            name = run_config.optimizer.name
            print(f"ckpt.pt has no optimizer state: nanoGPT has no {name}; it can sample from it, but not resume")
        content |= {
            "iter_num": trained.step,
            "best_val_loss": (loaded.state.get("best") or [1e9])[0],
            "config": {"dataset": run_config.data.name, "learning_rate": run_config.optimizer.lr},
        }
    folder.mkdir(exist_ok=True)
    torch.save(content, folder / "ckpt.pt")
    write_file(folder / tokenizers.FILE, tokenizers.to_json(trained.tokenizer))  # read back by init_from=…/ckpt.pt
    if isinstance(trained.tokenizer, CharTokenizer):
        write_meta(folder / "meta.pkl", trained.tokenizer.chars)


def optimizer_state(
    weights: Mapping[str, Tensor], moments: Mapping[str, Tensor], model: ModelConfig, config: TrainConfig
) -> dict[str, Any]:
    """Return the state_dict of nanoGPT's AdamW: parameters numbered in order, those with two dimensions first."""
    parameters = {name: nn.Parameter(tensor) for name, tensor in weights.items()}
    settings = config.optimizer
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters.values() if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters.values() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps)
    for quantity in ("step", "exp_avg", "exp_avg_sq"):
        of_all = {name: moments[f"{name}/{quantity}"] for name in parameters if f"{name}/{quantity}" in moments}
        for name, tensor in (cut_padding(of_all, model) if quantity != "step" else of_all).items():
            optimizer.state[parameters[name]][quantity] = tensor
    return optimizer.state_dict()
