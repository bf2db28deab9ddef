"""Run a conformance file: cases with what the reference's own functions returned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from benchmarks.boxes import Found, read_detection, single_box
from benchmarks.cases import compare, run_cases
from benchmarks.t2i_compbench.boxes import is_duplicate
from benchmarks.t2i_compbench.complex_prompts import (
    average_parts,
    drop_adjectives,
    first_sentence,
    list_parts,
)
from benchmarks.t2i_compbench.numeracy import (
    class_of,
    find_counts,
    merge_detections,
    score_counts,
)
from benchmarks.t2i_compbench.questions import (
    clean_question,
    multiply_answers,
    round_answer,
    select_phrases,
    write_question,
    yes_probability,
)
from benchmarks.t2i_compbench.replies import score_gpt4v_reply, score_share_replies
from benchmarks.t2i_compbench.spatial import (
    RELATIONS_2D,
    RELATIONS_3D,
    find_complex_objects,
    find_objects,
    find_relation,
    score_depth,
    score_plane,
    score_position,
)

TOLERANCE = 1e-6
IMAGES = 10
"""Images of a prompt that the reference's 3-in-1 evaluator has in its code."""


def _run_case(case: Mapping[str, Any]) -> Iterator[str]:
    kind = case["kind"]
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; known are {', '.join(KINDS)}")
    answer = KINDS[kind]
    yield from _compare_answer(answer, case, case["expected"], "")
    if "variant_upright" in case:
        variant = {**case, "upright": True}
        yield from _compare_answer(answer, variant, case["variant_upright"], "upright ")


def _compare_answer(
    answer: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    case: Mapping[str, Any],
    expected: Mapping[str, Any],
    which: str,
) -> Iterator[str]:
    """Compare an answer's fields with the expected ones; where an error is, we must refuse."""
    if "error" in expected:
        try:
            got = answer(case)
        except ValueError:
            return
        yield f"{which}{got!r}, expected a refusal ({expected['error']} in the reference)"
        return
    got = answer(case)
    for name, value in expected.items():
        yield from compare(f"{which}{name}", got[name], value, TOLERANCE)


conformance = partial(run_cases, find_differences=_run_case)
"""Run the cases of a file; return passed, failed, and a message per failed case."""


# --- kinds of case --------------------------------------------------------------------------------


def _answer_questions(case: Mapping[str, Any]) -> Mapping[str, Any]:
    slots = case["np_num"]
    phrases = select_phrases(case["noun_chunks"], slots)
    phrases += [""] * (slots - len(phrases))
    questions = [write_question(phrase) for phrase in phrases]
    preprocessed = [clean_question(question) for question in questions]
    return {"questions": questions, "preprocessed": preprocessed}


def _answer_preprocess(case: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"text": clean_question(case["text"])}


def _answer_blip_probability(case: Mapping[str, Any]) -> Mapping[str, Any]:
    logits = (case["yes_logit"], case["no_logit"])
    if _underflow(logits, case["rest"]):  # the reference has no number there, we have one
        return {"probability": None, "answer": "nan"}
    probability = yes_probability(*logits)
    return {"probability": probability, "answer": round_answer(probability)}


def _underflow(logits: Sequence[float], rest: float) -> bool:
    """Tell whether the 32-bit softmax of both logits is 0 among a vocabulary of `rest`."""
    highest = max(*logits, rest)
    return all(np.exp(np.float32(logit - highest)) == 0 for logit in logits)


def _answer_blip_score(case: Mapping[str, Any]) -> Mapping[str, Any]:
    pairs = list(zip(case["questions"], case["probabilities"], strict=True))
    asked = [probability for question, probability in pairs if question]
    answers = [round_answer(probability) for _, probability in pairs]
    return {"answers": answers, "score": multiply_answers(asked)}


def _answer_position(case: Mapping[str, Any]) -> Mapping[str, Any]:
    boxes = (single_box(case["box1"]), single_box(case["box2"]))
    return {"value": score_position(case["relation"], *boxes)}


def _answer_plane(case: Mapping[str, Any]) -> Mapping[str, Any]:
    tokens = _read_tokens(case)
    objects = find_complex_objects(tokens) if case["complex"] else find_objects(tokens)
    relation = find_relation(case["prompt"], RELATIONS_2D)
    return {"score": score_plane(objects, relation, _read_detections(case)).value}


def _answer_depth(case: Mapping[str, Any]) -> Mapping[str, Any]:
    objects = find_objects(_read_tokens(case))
    relation = find_relation(case["prompt"], RELATIONS_3D)
    upright = bool(case.get("upright"))
    depth = _paint_depth(case["depth"])
    found = score_depth(objects, relation, _read_detections(case), depth, upright=upright)
    return {"score": found.value}


def _answer_numeracy(case: Mapping[str, Any]) -> Mapping[str, Any]:
    counts = find_counts(case["words"])
    detections = _read_detections(case)
    wanted = [(class_of(noun), count) for noun, count in counts]
    return {
        "score": score_counts(wanted, detections).value,
        "objects": [noun for noun, _ in counts],
        "counts": [count for _, count in counts],
        "kept": merge_detections(detections),
    }


def _answer_merge(case: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"merge": is_duplicate(single_box(case["box1"]), single_box(case["box2"]))}


def _answer_clip_text(case: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"text": drop_adjectives(_read_tokens(case))}


def _answer_three_in_one(case: Mapping[str, Any]) -> Mapping[str, Any]:
    spatial = {first_sentence(prompt) for prompt in case["spatial_prompts"]}
    action = {first_sentence(prompt) for prompt in case["action_prompts"]}
    scores = []
    for index, prompt in enumerate(case["prompts"]):
        parts = list_parts(prompt, spatial, action)
        for image in range(index * IMAGES, (index + 1) * IMAGES):
            values = {part: case[part][image] for part in ("attribute", "spatial", "action")}
            scores.append(average_parts(parts, values))
    return {"scores": scores, "mean": sum(scores) / len(scores)}


def _answer_share(case: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"score": score_share_replies(case["category"], case["replies"])}


def _answer_gpt4v(case: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"score": score_gpt4v_reply(case["reply"])}


def _answer_mean(case: Mapping[str, Any]) -> Mapping[str, Any]:
    answers = [float(answer) for answer in case["answers"]]
    return {"mean": sum(answers) / len(answers)}


KINDS: Mapping[str, Callable[[Mapping[str, Any]], Mapping[str, Any]]] = {
    "questions": _answer_questions,
    "preprocess": _answer_preprocess,
    "blip_probability": _answer_blip_probability,
    "blip_score": _answer_blip_score,
    "position_2d": _answer_position,
    "spatial_2d": _answer_plane,
    "spatial_3d": _answer_depth,
    "numeracy": _answer_numeracy,
    "merge_pair": _answer_merge,
    "clip_text": _answer_clip_text,
    "three_in_one": _answer_three_in_one,
    "share_score": _answer_share,
    "gpt4v_score": _answer_gpt4v,
    "category_mean": _answer_mean,
}
"""How each kind of case is answered: case -> fields, as `expected` names them."""


# --- reading cases --------------------------------------------------------------------------------


def _read_tokens(case: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(word, part) for word, part in case["tokens"]]


def _read_detections(case: Mapping[str, Any]) -> list[Found]:
    return list(map(read_detection, case["detections"]))


def _paint_depth(described: Mapping[str, Any]) -> np.ndarray:
    """Paint a depth map, float32 [H, W]: a fill, then rectangles in order."""
    depth = np.full((described["height"], described["width"]), described["fill"], np.float32)
    for x1, y1, x2, y2, value in described["regions"]:
        depth[y1:y2, x1:x2] = value
    return depth / np.float32(255)
