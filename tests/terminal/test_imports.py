import os
import subprocess
import sys

HEAVY = {"torch", "numpy", "numba", "transformers", "tokenizers", "huggingface_hub"}


def test_the_terminal_runs_without_tensors():
    """Which modules the sources may name is `tests/test_import_directions.py`; this is what they bring with them."""
    script = (
        "import sys, localr1.terminal.repl, localr1.terminal.progress, prompt_toolkit, rich.progress\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "[]\n"


def test_a_download_of_what_is_here_needs_no_tensors(tmp_path):
    script = (
        "import sys\nfrom localr1.cli.app import main\n"
        "try:\n    main(['download', 'nano'])\nexcept SystemExit as end:\n    assert not end.code\n"
        "print(sorted({'torch', 'numba', 'transformers'} & set(sys.modules)))"
    )
    environment = os.environ | {"LOCALR1_HOME": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert "nano is already here" in result.stderr
    assert result.stdout == "[]\n"
