"""`scalegan stats`: the statistics of real images in a file that can be shared, and that pytorch-fid and others read too."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

from scalegan.config import DataConfig
from scalegan.errors import UserError
from scalegan.evaluation import command
from scalegan.evaluation_config import EvaluationConfig
from scalegan.files import try_out


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="FOLDER|SHARDS|RUN", help="images, or a run for those it was trained on")
    parser.add_argument("out", type=Path, metavar="OUT.npz", help="file to write: `scalegan evaluate ... --against OUT.npz`")
    command.add_extractor_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from scalegan.distributed import in_company
    from scalegan.evaluation import sides, statistics_file
    from scalegan.evaluation.features import load_extractor
    from scalegan.evaluation.folder import check_window, open_images
    from scalegan.evaluation.real import RealImages, real_statistics
    from scalegan.evaluation.weights import user_cache

    if args.out.suffix != ".npz":
        raise UserError(f"{args.out}: statistics are an .npz file, such as {args.out.with_suffix('.npz')}")
    kind = sides.kind_of(args.source)
    if kind == "statistics":
        raise UserError(
            f"{args.source} is an .npz, of which statistics alone are read: give a folder of images, shards, or a run"
        )
    if args.window and kind != "folder":
        raise UserError("--window means nothing for shards, whose images went through theirs: leave it out")
    accelerator, team = command.start(args.device)
    own = command.own_extractor(args, accelerator.device)
    ours = sides.config_of(args.source) if kind == "run" else None
    config = command.overridden(ours.evaluation if ours else EvaluationConfig(), args)
    with in_company(), ExitStack() as stack, command.progress_bar(team.first and sys.stderr.isatty()) as progress:
        with team.as_one():
            if team.first:
                try_out(args.out, "OUT.npz")
        cache = command.cache_for(own, user_cache() / "scalegan" / "statistics", stack)
        index = sides.images_of(args.source, kind, args.window, team, option="")
        check_window(args.window, index)
        extractor = own or load_extractor(config, accelerator.device, team)
        data = DataConfig(path=index.root)
        if ours:  # shards that lie far away are kept where the run keeps them, which may be there already
            data = replace(data, cache=ours.data.cache, cache_gb=ours.data.cache_gb)
        with closing(open_images(index, data, accelerator.device)) as reader:
            images = RealImages(index, config.real, reader)
            real = real_statistics(images, extractor, config.batch, team, cache, progress)
    if real is not None:
        statistics_file.save(args.out, real, extractor, index.root, index.sha256)
        features = f"{extractor.width} features of {extractor.name}, {extractor.network.resize}"
        label = "" if extractor.precision == "float32" else f"; {extractor.precision}, for the monitor mode alone"
        print(f"{args.out}: {real.images} images of {index.root}, {features}{label}")
    accelerator.end_training()
    return 0
