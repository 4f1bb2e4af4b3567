"""The two steps of GAN training. Start reading here: `Game.discriminator_step` and `Game.generator_step` are the method."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from scalegan import losses, own, power, schedules
from scalegan.adaptive import Adaptive
from scalegan.config import Config
from scalegan.critic import Critic, Scores
from scalegan.data.loader import Batch
from scalegan.draws import DataFacts, Draws
from scalegan.ema import make_ema, update_ema
from scalegan.float32 import plain_float32
from scalegan.impossible import refuse_impossible
from scalegan.models import build_discriminator, build_generator, place
from scalegan.models.batch_norm import average_running_statistics
from scalegan.models.conditions import set_strength
from scalegan.models.stages import freeze
from scalegan.path_length import Fakes, Maker
from scalegan.pixels import normalise
from scalegan.statistics import Values


def joined(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    return None if first is None or second is None else torch.cat([first, second])


def build_networks(config: Config, facts: DataFacts) -> tuple[nn.Module, Critic]:
    """Generator and critic on the CPU: the same weights on every process, and the critic's first stages frozen if asked for.

    The configuration is one that a command line gave, as it may name classes of the user's own, which are imported.
    """
    model, classes = config.model, len(facts.class_counts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        generator = build_generator(model, facts.shape, classes, own.network("--model.generator", model.generator))
        discriminator = build_discriminator(
            model, facts.shape, classes, own.network("--model.discriminator", model.discriminator)
        )
    freeze(discriminator, config.optim.freeze_critic)  # before DDP asks which weights have a gradient
    return generator, Critic(discriminator, config.augment)


class Game:
    """Generator against critic: both networks, their optimizers, and the steps they take in turn."""

    def __init__(self, config: Config, accelerator: Accelerator, facts: DataFacts) -> None:
        self.config, self.accelerator, self.facts = config, accelerator, facts
        self.rounds = config.train.accumulate
        share = config.train.batch // accelerator.num_processes
        self.draws = Draws(config, facts, accelerator.device, share // self.rounds, accelerator.process_index * share)

        generator, critic = build_networks(config, facts)
        own.check_networks(config, facts.shape, generator, critic.discriminator, accelerator.num_processes)
        self.loss = own.loss_of(config.loss)
        refuse_impossible(config, generator, critic, self.loss, self.draws.count, accelerator.num_processes)
        for network in (generator, critic):
            place(network, accelerator.device)
        self.ema = make_ema(generator)
        self.powers = {std: make_ema(generator) for std in config.ema.power}
        if config.train.compile:
            # In place, and before DDP, which sees ordinary modules. Dynamo would cut them where DDP's buckets end, so that
            # reducing overlaps with the backward pass: in the middle of `torch.func.grad`, which cannot be cut. As it is,
            # gradients are reduced when the compiled backward pass has given all of them.
            torch._dynamo.config.optimize_ddp = False
            mode = "reduce-overhead" if config.train.cuda_graphs else None
            generator.compile(dynamic=False, mode=mode)
            critic.compile(dynamic=False, mode=mode)
        couples_samples: bool = critic.discriminator.couples_samples  # type: ignore[assignment]
        group = config.model.critic_group
        self.scored_apart = couples_samples and (not group or self.draws.count % group > 0)
        """Whether real images and fakes in one batch would meet inside the critic."""
        if config.loss.penalty_form == "difference":
            plain_float32()
        optim = config.optim
        opt_g = torch.optim.Adam(generator.parameters(), lr=optim.lr_g, betas=optim.betas_g, fused=True)
        opt_d = torch.optim.Adam(critic.parameters(), lr=optim.lr_d, betas=optim.betas_d, fused=True)
        self.generator, self.critic, self.opt_g, self.opt_d = accelerator.prepare(Maker(generator), critic, opt_g, opt_d)
        # Sampling for the critic and scoring for the generator go round DDP: nothing of theirs is to be reduced.
        self.maker: Maker = accelerator.unwrap_model(self.generator)
        self.bare_generator = generator
        self.bare_critic: nn.Module = accelerator.unwrap_model(self.critic)
        self.learning = [parameter for parameter in self.bare_critic.parameters() if parameter.requires_grad]
        """Weights of the critic that are not frozen for good."""
        self.nonfinite = torch.zeros(2, dtype=torch.int64, device=accelerator.device)
        """Number of the first gradient that was not finite, in the last step of critic and generator; 0 where all were."""
        self.adaptive = Adaptive(config.augment, config.train.batch, self.loss.boundary or 0.0, accelerator.device)

    def discriminator_step(self, reals: Sequence[Batch], images_seen: int) -> Values:
        """Teach the critic to tell this step's real images from fresh fakes; `reals` has one batch a round."""
        self.opt_d.zero_grad()
        config, now = self.config.loss, schedules.scheduled(self.config, images_seen)
        self._set_classes(now.classes)
        penalised = config.penalised and self._number(images_seen) % config.penalty_every == 0
        values = Values()
        for round_, (first, real) in enumerate(self.rounds_of(reals, images_seen)):
            self._reuse_graphs()
            with torch.no_grad():
                labels = real.labels if self.loss.paired else self.draws.labels("d", first)
                fakes = self.maker(self.draws.latents("d", first), labels).images
            with self._reduced_in_last(round_, self.critic):
                ours, theirs, penalties = self._score(real, fakes, labels, first, penalised, now)
                adversarial = self.loss.critic(ours.logits, theirs.logits)
                auxiliary = self._auxiliary(ours, now)
                loss = adversarial + sum(auxiliary.values()) + config.penalty_every * sum(penalties.values())
                self._backward(loss, round_, self.critic)
            self.adaptive.see(ours.logits)
            right_real, right_fake = self.loss.accuracy(ours.logits, theirs.logits)
            values.add({
                "loss/D": adversarial,
                "logits/real": ours.logits.mean(),
                "logits/fake": theirs.logits.mean(),
                "accuracy/real": right_real,
                "accuracy/fake": right_fake,
                "sign/real": 2 * right_real - 1,
                **{f"{name}/D": value for name, value in auxiliary.items()},
                **penalties,
            })  # fmt: skip
        self.adaptive.after(self._number(images_seen) + 1)
        norm, skipped = self._step(self.opt_d, self.critic, self.config.optim.lr_d * now.rate, now.betas_d)
        values.add({"grad_norm/D": norm, "skipped/D": skipped})
        return values

    def generator_step(self, reals: Sequence[Batch], images_seen: int) -> Values:
        """Teach the generator to be taken for real by the critic, which holds still meanwhile.

        The real images of this step are looked at again by a loss that judges pairs. Where the critic takes several steps
        to one of the generator, nothing is done in the others.
        """
        values, config = Values(), self.config.loss
        turn, left = divmod(self._number(images_seen) + 1, self.config.optim.critic_steps)
        if left:
            return values
        now = schedules.scheduled(self.config, images_seen)
        penalised = config.path_weight > 0 and (turn - 1) % config.path_every == 0
        self.opt_g.zero_grad()
        self.bare_critic.requires_grad_(False)
        for round_, (first, real) in enumerate(self.rounds_of(reals, images_seen)):
            self._reuse_graphs()
            labels = real.labels if self.loss.paired else self.draws.labels("g", first)
            with self._reduced_in_last(round_, self.generator):
                fakes, varied = self._make(first, labels, penalised)
                scores = self.bare_critic(fakes.images, labels, self.draws.views("g", first, self.probability(now)))
                logits = [scores.logits]
                if self.loss.paired:
                    with torch.no_grad():
                        views = self.draws.views("g/real", first, self.probability(now))
                        logits.append(self.bare_critic(normalise(real.images), labels, views).logits)
                adversarial = self.loss.generator(*logits)
                auxiliary = {n: v for n, v in self._auxiliary(scores, now).items() if losses.AUXILIARY[n].generator}
                loss = adversarial + sum(auxiliary.values())
                if varied is not None:
                    loss = loss - config.diversity_weight * varied.reward
                    values.add({"diversity/G": varied.mean})
                if fakes.squared_grad_norm is not None:
                    path, lengths = losses.path_length(
                        fakes.squared_grad_norm, self.maker.typical, now.penalty * config.path_weight
                    )
                    loss = loss + config.path_every * path
                    values.add({"path": path, "path_length": lengths.mean()})
                self._backward(loss, round_, self.generator)
            values.add({"loss/G": adversarial, **{f"{name}/G": value for name, value in auxiliary.items()}})
        for parameter in self.learning:
            parameter.requires_grad_(True)
        if penalised:  # once a step, so that rounds make no difference
            self.maker.remember(values.means()["path_length"], config.path_decay)
        norm, skipped = self._step(self.opt_g, self.generator, self.config.optim.lr_g * now.rate, now.betas_g)
        values.add({"grad_norm/G": norm, "skipped/G": skipped})
        return values

    def rounds_of(self, reals: Sequence[Batch], images_seen: int) -> Iterator[tuple[int, Batch]]:
        """The real images of the step from `images_seen` on as the networks see them, by rounds, each after its first place."""
        for round_, real in enumerate(map(self.without_labels, reals)):
            first = self.draws.first(images_seen, round_)
            yield first, Batch(self.draws.mirrored(real.images, first), real.labels)

    def without_labels(self, real: Batch) -> Batch:
        """Without classes, labels become -1: fakes have none, and by them the critic could tell real images from fakes."""
        return real if self.config.model.conditional else Batch(real.images, torch.full_like(real.labels, -1))

    def _make(self, first: int, labels: Tensor, penalised: bool) -> tuple[Fakes, losses.Diversity | None]:
        """The fakes of a generator step, and how they differ from second ones of their classes where that is rewarded."""
        latents, config = self.draws.latents("g", first), self.config.loss
        if not config.diversity_weight:
            return self.generator(latents, labels, penalised), None
        others = self.draws.latents("other", first)
        # In pairs, so that images that are normalised together are the same ones on any number of processes.
        both = torch.stack([latents, others], dim=1).flatten(0, 1)
        fakes: Fakes = self.generator(both, labels.repeat_interleave(2), penalised)
        images, twins = fakes.images[::2], fakes.images[1::2]
        return fakes._replace(images=images), losses.diversity(images, twins, latents, others, config.diversity_limit)

    def _auxiliary(self, scores: Scores, now: schedules.Scheduled) -> dict[str, Tensor]:
        """Weighted mean of each further loss of the discriminator, at the images of `scores`."""
        weights = {name: getattr(self.config.loss, losses.AUXILIARY[name].weight) for name in scores.auxiliary}
        if "class" in weights:
            weights["class"] *= now.classes
        return {name: weights[name] * loss.mean() for name, loss in scores.auxiliary.items()}

    def _set_classes(self, strength: float) -> None:
        """How far the classes have come in by now, for all networks."""
        if self.config.model.ramped:
            for network in (self.bare_generator, self.bare_critic, self.ema, *self.powers.values()):
                set_strength(network, strength)

    def probability(self, now: schedules.Scheduled) -> Tensor | float:
        """Of each augmentation: what the clock says, or the adaptive one."""
        return self.adaptive.p if self.config.augment.target else now.augment

    def _number(self, images_seen: int) -> int:
        """Steps before this one."""
        return images_seen // self.config.train.batch

    def average(self, images_seen: int) -> None:
        average_running_statistics(self.bare_generator)
        half_life = schedules.scheduled(self.config, images_seen).half_life
        update_ema(self.ema, self.bare_generator, schedules.ema_decay(half_life, self.config.train.batch))
        for std, average in self.powers.items():
            update_ema(average, self.bare_generator, power.decay(std, self._number(images_seen)))

    def _score(
        self, real: Batch, fakes: Tensor, fake_labels: Tensor, first: int, penalised: bool, now: schedules.Scheduled
    ) -> tuple[Scores, Scores, dict[str, Tensor]]:
        """Scores of the real images and of the fakes, and the penalties by name.

        In one forward where that keeps the two sides apart and both want the same outputs.
        """
        config, images = self.config.loss, normalise(real.images)
        views, fake_views = (self.draws.views(side, first, self.probability(now)) for side in ("real", "fake"))
        steep_real, steep_fake = penalised and config.r1_gamma > 0, penalised and config.r2_gamma > 0
        offsets = self.draws.offsets("real", first) if steep_real else None
        fake_offsets = self.draws.offsets("fake", first) if steep_fake else None
        if self.scored_apart or steep_real != steep_fake:
            ours = self.critic(images, real.labels, views, steep_real, offsets)
            theirs = self.critic(fakes, fake_labels, fake_views, steep_fake, fake_offsets)
        else:
            both = torch.cat([images, fakes]), torch.cat([real.labels, fake_labels]), joined(views, fake_views)
            ours, theirs = self.critic(*both, steep_real, joined(offsets, fake_offsets)).halves()
        penalties: dict[str, Tensor] = {}
        if steep_real:
            penalties["r1"] = losses.zero_centred(ours.squared_grad_norm, now.penalty * config.r1_gamma)
        if steep_fake:
            penalties["r2"] = losses.zero_centred(theirs.squared_grad_norm, now.penalty * config.r2_gamma)
        if penalised and config.gp_weight > 0:
            mixed = torch.lerp(fakes, images, self.draws.mixture(first))
            scores = self.critic(mixed, real.labels, views, True, self.draws.offsets("mixed", first))
            penalties["gp"] = losses.gradient_penalty(
                scores.squared_grad_norm, now.penalty * config.gp_weight, config.gp_centre
            )
        return ours, theirs, penalties

    def _reuse_graphs(self) -> None:
        """A round begins, and CUDA graphs may overwrite what networks gave in the one before: nothing of it is held any more.

        Not left to torch, which would take the critic's call for a new round, as nothing waits for a backward pass of the fakes
        that the critic is about to see.
        """
        if self.config.train.cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]

    def _backward(self, loss: Tensor, round_: int, network: nn.Module) -> None:
        """Add the gradients of a round to those of the step."""
        self.accelerator.backward(loss / self.rounds)
        if self.config.train.cuda_graphs and round_ == 0 and self.rounds > 1:
            # They lie where the graph left them, which the next round overwrites. It adds to these copies in place.
            for parameter in network.parameters():
                if parameter.grad is not None:
                    parameter.grad = parameter.grad.clone()

    def _reduced_in_last(self, round_: int, network: nn.Module) -> AbstractContextManager[None]:
        """Gradients add up on each process and are reduced over processes in the last round of a step."""
        return nullcontext() if round_ == self.rounds - 1 else self.accelerator.no_sync(network)

    def _step(
        self, optimizer: AcceleratedOptimizer, network: nn.Module, rate: float, betas: tuple[float, float]
    ) -> tuple[Tensor, Tensor]:
        """One optimizer step, left out on the device where the gradient is not finite; gradient norm [] and 0 or 1 []."""
        for group in optimizer.param_groups:
            group["lr"], group["betas"] = rate, betas
        self.accelerator.unscale_gradients(optimizer)
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        norms = torch.stack(torch._foreach_norm(gradients))
        norm = torch.linalg.vector_norm(norms)
        self.nonfinite[int(optimizer is self.opt_g)] = norms.isfinite().float().argmin()
        if self.config.optim.clip:
            shorter = (self.config.optim.clip / norm).clamp(max=1.0)
            torch._foreach_mul_(gradients, torch.where(norm.isfinite(), shorter, 1.0))  # else each would seem not finite
        skipped = (~torch.isfinite(norm)).float()
        if self.accelerator.scaler is None:
            # The fused optimizers' own protocol for skipping without asking the host; under fp16 the scaler speaks it.
            optimizer.optimizer.found_inf = skipped
            optimizer.optimizer.step()  # Accelerate's wrapper looks a package up on the disk first, twice a step
        else:
            optimizer.step()
        return norm.nan_to_num(0.0, 0.0, 0.0), skipped

    def prime(self) -> None:
        """One throw-away backward through each DDP model: it settles the order in which gradients are reduced.

        DDP regroups its buckets after its first backward, so that without this a resumed run would add in another order
        than the unbroken one, and differ in the last bit from three processes on.
        """
        if self.accelerator.num_processes == 1:
            return
        self._reuse_graphs()
        buffers = [(b, b.clone()) for network in (self.bare_generator, self.bare_critic) for b in network.buffers()]
        count = self.draws.count  # of as many images as a step has, so that what is compiled for them serves it
        made = 2 * count if self.config.loss.diversity_weight else count
        labels = torch.full((made,), 0 if self.config.model.conditional else -1, device=self.accelerator.device)
        fakes = self.generator(torch.zeros(made, self.config.model.z_dim, device=self.accelerator.device), labels).images
        (fakes.sum() * 0).backward()
        scores = self.critic(fakes.detach()[:count], labels[:count], None)
        (sum(part.sum() for part in (scores.logits, *scores.auxiliary.values())) * 0).backward()
        self.opt_g.zero_grad()
        self.opt_d.zero_grad()
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)

    def gradient_name(self, place: int, number: int) -> str:
        """Of gradient `number` of the critic (0) or the generator (1), as `nonfinite` counts them, for a message."""
        network, module = (("critic", self.bare_critic), ("generator", self.bare_generator))[place]
        names = [name for name, parameter in module.named_parameters() if parameter.grad is not None]
        return f"{network}.{names[number]}"
