"""What a planned training asks of teacher, student and processes: told by names and settings alone, before any work.

A build plans one method beside its baseline and a table several; each is checked as the one it will be.
"""

from __future__ import annotations

from vlkd_bench.leaveout import BASELINE
from vlkd_distill.datacontract import describe
from vlkd_distill.specs import CLIP_PREFIX, TEACHER, Settings
from vlkd_distill.teacher_names import form_of, is_counted
from vlkd_distill.wording import words_for
from vlkd_runtime.errors import ConfigError

from .config import Config

_OPEN_CLIP = ("demo", "local-dir", "open-clip")


def check(config: Config, how: Settings) -> None:
    """Refuse a training that can only end in an error.

    Args:
        config: teacher and student; its own method does not matter.
        how: one planned training.

    Raises:
        ConfigError: names every problem found, not only the first.
    """
    errors = [
        *_white_box(config, how),
        *_store(config, how),
        *_prompted(config, how),
        *_shared(config, how),
        *_named(config, how),
    ]
    if errors:
        raise ConfigError(" ".join(errors))


def shows_images(how: Settings) -> bool:
    """Whether the teacher embeds images for a training, and not the class names alone."""
    nothing = how.method == "vlm-ood" and not how.asks_about_images
    return describe(how.method).teacher_images and not nothing


def _white_box(config: Config, how: Settings) -> list[str]:
    """What looks inside the teacher, where the teacher shows its answers only."""
    model, budget = config.teacher.model, config.teacher.query_budget
    if form_of(model) in _OPEN_CLIP and budget is None:
        return []
    found = f"'{model}'" if budget is None else f"'{model}' with a budget of {budget}"
    wanted = f"expected an open_clip model without a query budget (teacher.model), found {found}. Choose such a teacher"
    if config.student.arch == TEACHER:
        return [
            f"student.arch = '{TEACHER}' is a copy of the teacher's image encoder: {wanted}, or a timm model."
        ]
    if describe(how.method).white_box:
        return [
            f"{how.method} looks inside the teacher: {wanted}, or a method that needs answers alone, such as vl2v-adip."
        ]
    return []


def _store(config: Config, how: Settings) -> list[str]:
    """What nobody embedded beforehand."""
    model, errors = config.teacher.model, []
    if form_of(model) != "store" or not shows_images(how):
        return []
    if how.teacher_view == "same_aug":
        errors.append(
            "A store of embeddings knows no random views: expected distill.teacher_view = 'clean_cached', found "
            f"'same_aug' with teacher.model = '{model}'."
        )
    if how.method == "vlkd" and how.style_share > 0:
        errors.append(
            "A store of embeddings knows no style views: expected another method than 'vlkd', such as 'vl2v-adip', or "
            f"distill.style_share = 0, with teacher.model = '{model}'."
        )
    return errors


def _prompted(config: Config, how: Settings) -> list[str]:
    """A student with visual prompts, which one method alone trains; vl2v-sd makes its own of the teacher."""
    arch = config.student.arch
    if not arch.startswith(CLIP_PREFIX) or how.method in ("promptkd", "vl2v-sd"):
        return []
    return [
        f"student.arch = '{arch}': a CLIP's image tower with visual prompts is trained by promptkd only, found "
        f"{how.method}. Leave it out of --methods, or choose a timm model; a build trains {BASELINE} beside its method."
    ]


def _named(config: Config, how: Settings) -> list[str]:
    """Styles that texts name: who redraws, and what no text may say."""
    if how.method != "vlkd" or not how.prompted_styles:
        return []
    errors = []
    if config.synthesis.synthesiser == "demo":
        errors.append(
            "distill.prompted_styles: the demo's renderer draws scenes and redraws no image: expected "
            "synthesis.synthesiser = 'diffusion' or 'inversion'."
        )
    elif config.synthesis.synthesiser == "inversion" and form_of(config.teacher.model) not in _OPEN_CLIP:
        errors.append(
            "distill.prompted_styles: synthesis.synthesiser = 'inversion' needs the gradients of an open_clip teacher, "
            f"found '{config.teacher.model}'."
        )
    unsaid = words_for(config.data.held_out) if config.synthesis.exclude_held_out else ()
    for text in how.prompted_styles:
        if text.count("{}") != 1 or set(text.replace("{}", "", 1)) & set("{}"):
            errors.append(
                f"distill.prompted_styles: expected texts with one {{}} for the class name, found '{text}'."
            )
        said = next((word for word in (*config.synthesis.exclude, *unsaid) if word in text.lower()), None)
        if said is not None:
            errors.append(
                f"distill.prompted_styles: '{text}' says '{said}', and what is named is not unseen. Leave it out, or "
                "set synthesis.exclude_held_out = false and say so."
            )
    return errors


def _shared(config: Config, how: Settings) -> list[str]:
    """What several processes cannot share."""
    counted = is_counted(config.teacher.model, config.teacher.query_budget)
    if how.processes == 1 or how.teacher_view != "same_aug" or not shows_images(how) or not counted:
        return []
    return [
        "distill.processes: expected 1 where a teacher whose questions are counted embeds views, found "
        f"{how.processes}. Use distill.teacher_view = 'clean_cached', or one process."
    ]
