"""What a new run begins with where it is told to start from another one: that run's networks, but nothing else of it.

Everything is checked on process 0 before the run folder is made, and recorded in its run.json. A run that has a checkpoint
of its own never looks at the other one again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from scalegan import checkpoint, run, settings
from scalegan.config import Config
from scalegan.data.index import Index
from scalegan.draws import DataFacts
from scalegan.errors import UserError
from scalegan.model_config import ModelConfig
from scalegan.models.conditions import RampedEmbedding
from scalegan.sampling import find_checkpoint
from scalegan.steps import Game, build_networks

SOURCES = {"generator": "ema", "critic": "critic"}
"""The part of a checkpoint that each network is taken from. The raw generator is a step of its optimizer away from the
average; that optimizer stays behind, and the average is what was looked at, evaluated and chosen."""
NAMED = 8
"""Tensors that a message lists."""


@dataclass(frozen=True)
class Match:
    """The tensors of a network held against those of another."""

    fitting: dict[str, Tensor]
    """Of the other, those whose name and shape the network has too."""
    lacking: list[str]
    """Names in the network that the other has not, or not in this shape."""
    spare: list[str]
    """Names in the other that the network does not know."""


def find(config: Config, index: Index) -> dict[str, Any] | None:
    """What a new run starts from, as run.json records it; None for one that begins with nothing, or goes on.

    Raises `UserError` where the other run does not fit.
    """
    run_dir = Path(config.run)
    if not config.init_from or checkpoint.folders(run_dir):
        return None
    before = run.started_from(run_dir)
    try:
        found = find_checkpoint(Path(before["checkpoint"] if before else config.init_from))
    except UserError as error:
        if before:  # to name another start would be another run
            raise UserError(
                f"{before['checkpoint']}, which run folder {run_dir} was started from, is gone or damaged, and the run has no "
                "checkpoint of its own yet: restore it, or give --run another folder"
            ) from None
        raise UserError(f"init_from: {error}, by --init_from") from None
    data = {name: found.state["data"][name] for name in ("path", "sha256")}
    record = {"checkpoint": str(found.path.resolve()), "images_seen": found.images_seen, "data": data}
    record |= fit(found, config, index)
    if before and record != before:
        raise UserError(f"{found.path} is not what run folder {run_dir} was started from: give --run another folder")
    return record


def fit(found: checkpoint.Checkpoint, config: Config, index: Index) -> dict[str, Any]:
    """sha256 of the files that are taken, and the tensors by network that begin anew. Raises `UserError`."""
    networks = dict(zip(SOURCES, build_networks(config, facts_of(index)), strict=True))
    where = f"init_from {found.path}"
    for name in taken(config):
        if f"{SOURCES[name]}.safetensors" not in found.files:
            (other,) = SOURCES.keys() - {name}
            raise UserError(f"{where} has no {name}: take the {other} alone, --init_networks {other}")
    matches = {name: match(networks[name], found.tensors(SOURCES[name])) for name in taken(config)}
    theirs = settings.config_of(found).model
    unlike = differences(theirs, found.state["data"], config, index)
    for name, (their, our) in {
        "generator": (theirs.generator or theirs.family, config.model.generator or config.model.family),
        "critic": (theirs.discriminator or theirs.critic, config.model.discriminator or config.model.critic),
    }.items():
        if name in matches and their != our:
            raise UserError(f"{where} has the {name} {their}, which is {our} here: start from a run with the same one")
    misfits = [f"{name}.{tensor}" for name, m in matches.items() for tensor in m.lacking + m.spare]
    others = any(not text.startswith("model.") for text in unlike)
    if (misfits or others) and not config.init_partial:
        named = [f"{listed(misfits)} do not fit"] if misfits else []
        raise UserError(
            f"{where} has other networks ({'; '.join(unlike + named)}): set the same model and data, or take the layers that "
            "fit with --init_partial"
        )
    if config.optim.freeze_critic and "critic" in matches:
        frozen = {name for name, parameter in networks["critic"].named_parameters() if not parameter.requires_grad}
        if unlearnt := [f"critic.{name}" for name in matches["critic"].lacking if name in frozen]:
            raise UserError(
                f"{where}: {listed(unlearnt)} would begin anew and stay frozen: lower optim.freeze_critic, or start from a run "
                "whose first stages fit"
            )
    for name, made in matches.items():
        if not made.fitting:
            raise UserError(f"{where}: not one tensor of the {name} fits: start from a run with networks more alike")
    return {
        "files": {f"{SOURCES[name]}.safetensors": found.files[f"{SOURCES[name]}.safetensors"] for name in matches},
        "anew": {name: m.lacking for name, m in matches.items() if m.lacking},
    }


def load(game: Game, record: Mapping[str, Any]) -> None:
    """Put the recorded weights into the networks of a run that has not begun."""
    found = checkpoint.read(Path(record["checkpoint"]))
    if any(found.files.get(file) != digest for file, digest in record["files"].items()):
        raise UserError(f"{found.path} has changed since this run was started from it: give --run another folder")
    for name in taken(game.config):
        networks = {"generator": (game.bare_generator, game.ema), "critic": (game.bare_critic,)}[name]
        tensors = found.tensors(SOURCES[name])
        for network in networks:
            network.load_state_dict(match(network, tensors).fitting, strict=False)


def match(network: nn.Module, tensors: Mapping[str, Tensor]) -> Match:
    """How far the classes have come in goes by the images seen (`model.class_ramp`): of the other run it is no weight."""
    ramps = {f"{name}.strength" for name, module in network.named_modules() if isinstance(module, RampedEmbedding)}
    weights = {name for name, _ in network.named_parameters()}
    own = {name: t for name, t in network.state_dict().items() if name not in ramps}
    tensors = {name: t for name, t in tensors.items() if name in weights or not name.endswith(".strength")}
    fitting = {name: t for name, t in tensors.items() if name in own and own[name].shape == t.shape}
    return Match(fitting, [n for n in own if n not in fitting], [n for n in tensors if n not in own])


def taken(config: Config) -> list[str]:
    return list(SOURCES) if config.init_networks == "both" else [config.init_networks]


def differences(model: ModelConfig, data: Mapping[str, Any], config: Config, index: Index) -> list[str]:
    """`name: theirs -> ours` of the settings and facts of the data that networks follow from."""
    theirs = {"model": asdict(model), "images": list(data["shape"])}
    ours = {"model": asdict(config.model), "images": list(facts_of(index).shape)}
    if config.model.conditional:
        theirs["classes"], ours["classes"] = list(data["classes"]), list(index.classes)
    return run.differences(theirs, ours)


def facts_of(index: Index) -> DataFacts:
    return DataFacts((index.channels, index.height, index.width), index.class_counts)


def listed(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def described(record: Mapping[str, Any], index: Index) -> str:
    """One line for the log of the new run on the images of `index`."""
    data = record["data"]
    trained = f", of {data['path']}, not of {index.root}" if data["sha256"] != index.sha256 else ""
    anew = [f"{network}.{name}" for network, names in record["anew"].items() for name in names]
    rest = f"; these begin anew: {listed(anew)}" if anew else ""
    return f"networks from {record['checkpoint']} ({record['images_seen']} images seen{trained}){rest}"
