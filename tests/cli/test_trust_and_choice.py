"""Signing on the command line, and what predict says of the engine and the variant it took."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from vlkd_edge.app import app
from vlkd_runtime.errors import BundleError, ConfigError

SPEC = Path(__file__).parents[2] / "runtime" / "spec"
IMAGE = SPEC / "decode" / "alpha.png"


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def answer(*arguments: str | Path) -> dict[str, Any]:
    done = run(*arguments, "--json")
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_keygen_sign_verify(tmp_path: Path) -> None:
    bundle, key = tmp_path / "b.vlkd", tmp_path / "maker.key"
    shutil.copy(SPEC / "example.vlkd", bundle)
    made = answer("keygen", key)
    assert made == {"private_key": str(key), "public_key": str(tmp_path / "maker.pub")}
    digest = answer("sign", bundle, "--key", key)["digest"]
    checks = answer("verify", bundle, "--require-signature", "--public-key", made["public_key"])["checks"]
    assert [check["detail"] for check in checks if check["name"] == "signature"] == [
        f"signed with {made['public_key']}"
    ]
    assert any(digest in check["detail"] for check in checks)
    # The key of the example signed other bytes of the same manifest's bundle: it is no key of this signature.
    refused = run("verify", bundle, "--public-key", SPEC / "example.pub", "--engine", "none", "--json")
    assert (refused.exit_code, json.loads(refused.stdout)["ok"]) == (1, False)
    stopped = run("predict", bundle, IMAGE, "--public-key", SPEC / "example.pub")
    assert isinstance(stopped.exception, BundleError)
    assert "was not made for these bytes" in str(stopped.exception)


def test_a_signature_cannot_be_required_without_a_key() -> None:
    for verb in (("verify", SPEC / "example.vlkd"), ("predict", SPEC / "example.vlkd", IMAGE)):
        done = run(*verb, "--require-signature")
        assert isinstance(done.exception, ConfigError)
        assert "--public-key with the key of the bundle's maker" in str(done.exception)


def test_predict_says_what_ran_and_why() -> None:
    found = answer("predict", SPEC / "example.vlkd", IMAGE)
    assert (found["engine"], found["provider"], found["variant"]) == (
        "ort-cpu",
        "CPUExecutionProvider",
        "float32",
    )
    chosen = found["selection"]
    assert chosen["engines"][0]["name"] == "tensorrt"
    assert all(one["reason"] for one in (*chosen["engines"], *chosen["variants"]))
    assert [(one["name"], one["taken"]) for one in chosen["variants"]] == [("float32", True), ("twin", False)]
    assert answer("predict", SPEC / "example.vlkd", IMAGE, "--variant", "twin")["variant"] == "twin"


def test_predict_answers_unknown() -> None:
    (plain,) = answer("predict", SPEC / "example.vlkd", IMAGE)["predictions"]
    assert plain["known"] is True
    for option in ("--threshold", "--min-similarity"):
        (row,) = answer("predict", SPEC / "example.vlkd", IMAGE, option, "1")["predictions"]
        assert (row["label"], row["known"], row["top"]) == ("unknown", False, plain["top"])
