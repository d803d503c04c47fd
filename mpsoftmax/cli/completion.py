"""`mpsoftmax completion`."""

import argparse

from mpsoftmax.cli.arguments import Commands

SHELLS = ("bash", "zsh", "fish")


def add(commands: Commands) -> argparse.ArgumentParser:
    """`completion SHELL`."""
    completion = commands.add_parser(
        "completion",
        help="print a script that completes commands, options, keys and values in a shell",
        description="Prints a script for the shell: commands, options and their choices, configuration keys "
        "as key.path= and, behind the =, the values of keys that have few.",
        epilog="""examples:
  mpsoftmax completion bash > ~/.local/share/bash-completion/completions/mpsoftmax
  mpsoftmax completion zsh > ~/.zfunc/_mpsoftmax       (a folder of $fpath)
  mpsoftmax completion fish > ~/.config/fish/completions/mpsoftmax.fish

exit status: 0; 2 an unknown shell""",
    )
    completion.add_argument("shell", choices=SHELLS, help="bash, zsh or fish")
    return completion


def run(options: argparse.Namespace, given: list[str]) -> int:
    """Print the script."""
    from mpsoftmax.cli import parser
    from mpsoftmax.cli.completion_scripts import script

    print(script(options.shell, parser()), end="")
    return 0
