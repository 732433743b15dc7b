"""Stops a run in which something that should train never gets a gradient.

A frozen projector, a detached branch or an adapter on a layer that the loss goes around trains
without an error and ends in weights that never moved. So each trainable tensor is watched until it
has had one gradient that is finite and not zero, which healthy runs reach in two steps.

How: a hook on each parameter, which autograd calls with the gradient before any strategy reduces,
shards or frees it. See docs/decisions/0005-gradient-guard.md.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sailplan.errors import TrainingError
from sailplan.model.families import family_of
from sailplan.model.parts import base_model, find_parts
from sailplan.train.optimizer import highest_rate

logger = logging.getLogger(__name__)

_PEFT_PREFIX = "base_model.model."
_NUM_NAMED = 4
_RARE = re.compile(r"\.trainable_tokens_delta\.")
"""Rows of added tokens: they have a gradient only where one of the tokens is in the batch."""


class GradientGuard(TrainerCallback):
    """Raises `TrainingError` where a trainable tensor goes without a gradient.

    Steps at a learning rate of zero and steps that loss scaling skipped do not count; for tensors
    that only images reach, steps without an image do not count either. When every tensor has been
    seen the hooks are gone and the guard costs nothing more. The rows of added tokens may wait for
    ever, since rare tokens are no mistake; that they did is told at the end.

    Args:
        num_steps: Optimizer steps that count, within which every tensor must have been seen;
            0 switches the guard off.
    """

    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps
        self._waiting: dict[str, int] = {}
        self._handles: list[Any] = []

    @property
    def waiting(self) -> tuple[str, ...]:
        """The trainable tensors that have not had a gradient yet."""
        return tuple(self._waiting)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Hooks the trainable parameters."""
        self._release()
        self._waiting = {}
        if self.num_steps <= 0 or model is None:
            return
        trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        names = [name.removeprefix(_PEFT_PREFIX) for name, _ in trainable]
        self._names, self._waiting = names, {name: index for index, name in enumerate(names)}
        self._image_names, media_ids = _needs_images(model, names)
        self._num_counted, self._learning_rate = 0, 0.0
        # Columns are the parameters; row 0 says "finite and not zero", row 1 "not finite".
        self._step_flags = torch.zeros(2, len(names), dtype=torch.int32, device=args.device)
        self._flags = self._step_flags.clone()
        self._step_images = torch.zeros(1, dtype=torch.int32, device=args.device)
        self._num_image_steps = self._step_images.clone()
        for index, (_, parameter) in enumerate(trainable):
            self._handles.append(_hook(parameter, partial(self._see, index)))
        if self._image_names:
            ids = torch.tensor(sorted(media_ids), device=args.device)
            look = partial(self._look_for_images, ids)
            self._handles.append(model.register_forward_pre_hook(look, with_kwargs=True))

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Notes the learning rate of the coming step: DeepSpeed moves it on within the step."""
        if self._handles:
            self._learning_rate = highest_rate(optimizer)
            self._step_flags.zero_()
            self._step_images.zero_()

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Counts the step, and judges.

        Raises:
            TrainingError: A gradient was not finite, or a tensor had none for too long.
        """
        if not self._handles or self._learning_rate == 0 or optimizer.step_was_skipped:
            return
        self._num_counted += 1
        self._flags |= self._step_flags
        self._num_image_steps += self._step_images
        # Later on only image tensors can be waiting, for images: look at them once in a while.
        if self._num_counted <= self.num_steps or self._num_counted % self.num_steps == 0:
            self._judge(state.global_step + 1)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Says what a run too short to be judged leaves open."""
        # An adapter's A has no gradient in the first step, while B is zero.
        if self._waiting and self._num_counted > 1 and state.is_world_process_zero:
            logger.warning("no gradient in this whole run: %s", _list(list(self._waiting)))
        self._release()

    def _see(self, index: int, gradient: Tensor) -> None:
        """Notes one gradient, on the device: nothing here waits for it."""
        if gradient.numel() == 0:
            return
        peak = torch.linalg.vector_norm(gradient.detach(), ord=float("inf"))
        finite = torch.isfinite(peak)
        flags = torch.stack((finite & (peak > 0), ~finite)).to(self._step_flags)
        self._step_flags[:, index] |= flags

    def _look_for_images(
        self, media_ids: Tensor, module: nn.Module, args: Any, kwargs: dict[str, Any]
    ) -> None:
        """Notes whether an image stands before a trained token.

        A dummy image, appended so that all ranks run the vision tower, has none behind it.
        """
        tokens, labels = kwargs.get("input_ids"), kwargs.get("labels")
        if not module.training or tokens is None or labels is None:
            return
        trained_from_here = (labels != -100).flip(-1).cumsum(-1).flip(-1) > 0
        seen = (torch.isin(tokens, media_ids) & trained_from_here).any()
        self._step_images |= seen.to(self._step_images)

    def _judge(self, step: int) -> None:
        report = torch.cat((self._flags.flatten(), self._num_image_steps))
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(report, op=torch.distributed.ReduceOp.MAX)
        *flags, num_image_steps = report.tolist()
        healthy, broken = flags[: len(flags) // 2], flags[len(flags) // 2 :]
        not_finite = [name for name, index in self._waiting.items() if broken[index]]
        if not_finite:
            self._release()
            raise TrainingError(
                f"the gradient is not finite at step {step}: {_list(not_finite)}",
                todo="look at the loss before it: lower learning_rate, train in bf16 rather than "
                "fp16, or set max_grad_norm",
            )
        self._waiting = {name: i for name, i in self._waiting.items() if not healthy[i]}
        dead = [
            name
            for name in self._waiting
            if (num_image_steps if name in self._image_names else self._num_counted)
            >= self.num_steps
            and not _RARE.search(name)
        ]
        if dead:
            self._release()
            raise TrainingError(
                f"no gradient in {self.num_steps} optimizer steps: {_list(dead)}",
                todo="freeze them or leave them out of the LoRA targets if they should not train; "
                "gradient_check_steps: 0 switches this check off",
            )
        if not self._waiting:
            self._release()

    def not_finite(self) -> str:
        """Names tensors whose gradient was not finite in this step; all ranks must ask at once.

        Nothing is named once every tensor has been seen.
        """
        if not self._handles:
            return ""
        broken = self._step_flags[1].clone()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(broken, op=torch.distributed.ReduceOp.MAX)
        return _list([self._names[index] for index in broken.nonzero().flatten().tolist()])

    def _release(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []


def _hook(parameter: Any, see: Callable[[Tensor], None]) -> Any:
    """Has `see` called with each gradient of the parameter, and returns the hook's handle."""
    is_shard = isinstance(parameter, DTensor)
    if is_shard:
        # FSDP2's shards are no leaves of the graph: it sets their gradient, then calls these.
        return parameter.register_post_accumulate_grad_hook(lambda p: see(p.grad.to_local()))
    return parameter.register_hook(see)


def _needs_images(model: Any, names: Sequence[str]) -> tuple[frozenset[str], frozenset[int]]:
    """Returns the parameters that only images reach, and the token ids that stand for images."""
    base = base_model(model)
    parts, family = find_parts(base), family_of(base.config)
    crossed = getattr(base.config.get_text_config(), "cross_attention_layers", None) or ()
    layers = tuple(f"{parts.language}.layers.{index}." for index in crossed)
    reached = frozenset(n for n in names if parts.is_vision(n) or n.startswith(layers))
    return (reached, family.media_token_ids) if family.is_vision else (frozenset(), frozenset())


def _list(names: Sequence[str]) -> str:
    more = len(names) - _NUM_NAMED
    return ", ".join(names[:_NUM_NAMED]) + (f" and {more} more" if more > 0 else "")
