"""Runs another program, a plain PPO that prints a JSON line per iteration, one iteration per line read from stdin.

usage: plain_ppo.py MODEL_DIR --script plain-ppo.py [--rollouts 64] [--new-tokens 48] [--iterations 60] [--threads 2]
"""
import runpy
import sys

from peer import Clock, arguments, say, say_ready

parser = arguments()
parser.add_argument("--script", required=True)
parser.add_argument("--rollouts", default="64")
parser.add_argument("--new-tokens", default="48")
parser.add_argument("--iterations", default="60")
options = parser.parse_args()


def wait():
    global clock
    if not sys.stdin.readline():
        sys.exit(0)
    clock = Clock()


def end_of_iteration(*_, **__):
    say(clock.read())
    wait()


say_ready()
sys.argv = [options.script, options.directory, "--rollouts", options.rollouts, "--new-tokens", options.new_tokens,
            "--iterations", options.iterations, "--threads", str(options.threads)]
wait()
runpy.run_path(options.script, init_globals={"print": end_of_iteration}, run_name="__main__")
