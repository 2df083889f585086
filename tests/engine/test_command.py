"""``fairlead engine`` as a user runs it."""

import argparse
import signal
import subprocess
import sys
import urllib.request

import pytest

from fairlead.engine import command


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(words)


def test_wrong_options_are_told_and_exit_2(capsys) -> None:
    assert command.run(parse("--profile", "llama-3.1-8b-h1000")) == 2
    assert "did you mean 'llama-3.1-8b-h100'" in capsys.readouterr().err
    assert command.run(parse("--order", "dlpm:quantu=1")) == 2
    assert "quantum" in capsys.readouterr().err


def test_an_address_that_cannot_be_bound_exits_1(capsys) -> None:
    assert command.run(parse("--host", "192.0.2.1", "--port", "0")) == 1
    assert "fairlead engine:" in capsys.readouterr().err


def test_help_says_what_it_is(capsys) -> None:
    with pytest.raises(SystemExit):
        parse("--help")
    assert "the text is filler" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serves_until_interrupted(number):
    words = [sys.executable, "-m", "fairlead.cli", "engine", "--port", "0", "--speed", "100"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            line = process.stdout.readline()
            assert line.startswith("a model of an engine (llama-3.1-8b-h100) listens on http://127.0.0.1:")
            with urllib.request.urlopen(line.split()[-1] + "/v1/models", timeout=60) as got:
                assert got.status == 200
            process.send_signal(number)
            _out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0
    assert "Traceback" not in err
