"""A sweep hosted by W&B: created there, run by an agent here."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass, field

import wandb
import yaml

from mmkd.errors import UserError
from mmkd.sweeps.agent import parameters
from mmkd.sweeps.processes import end
from mmkd.sweeps.sweep_file import SweepFile

POLL_SECONDS = 0.5
# Time for a run to write its checkpoint and finish before it is killed.
KILL_AFTER_SECONDS = 60


@dataclass
class HostedSweep:
    """Creates a sweep at W&B and runs W&B's function agent for it.

    Each run executes the sweep file's ``command`` in its own process, because runs cannot share the Runner's
    singletons and signal handlers.

    Args:
        sweep: the sweep file.
        project: W&B project; by default the sweep file's, then WANDB_PROJECT.
        entity: W&B user or team.
    """

    sweep: SweepFile
    project: str | None = None
    entity: str | None = None
    _runs: int = 0
    _failed: list[str] = field(default_factory=list)

    def create(self) -> str:
        """Create the sweep; returns its id.

        Raises:
            UserError: W&B cannot be reached or rejects the sweep.
        """
        content = yaml.safe_load(self.sweep.path.read_text(encoding="utf-8"))
        try:
            return str(wandb.sweep(content, project=self.project, entity=self.entity))
        except Exception as error:
            raise UserError(
                "Cannot create the W&B sweep.",
                expected="a W&B server, a key (`wandb login` or WANDB_API_KEY) and a valid sweep file",
                found=f"{type(error).__name__}: {str(error).splitlines()[0]}",
                remedy="correct that, or run the sweep locally without an account: --local",
            ) from error

    def run(self, sweep_id: str, count: int) -> None:
        """Run the agent until ``count`` runs are done.

        Raises:
            UserError: no run succeeded.
        """
        wandb.agent(sweep_id, function=self._trial, count=count, project=self.project, entity=self.entity)
        if self._runs and len(self._failed) == self._runs:
            raise UserError(f"none of the {self._runs} runs succeeded; the last: {self._failed[-1]}")

    def _trial(self) -> None:
        self._runs += 1
        command = self.sweep.command_for(parameters())
        # Do not pass the agent's own connection to its children.
        env = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}
        process = subprocess.Popen(command, env=env, start_new_session=True)
        try:
            while process.poll() is None:
                time.sleep(POLL_SECONDS)
        except BaseException:  # W&B's agent stops a run by raising an exception at any point
            end(process, KILL_AFTER_SECONDS)
            raise
        if process.returncode != 0:
            self._failed.append(f"{os.environ.get('WANDB_RUN_ID')}, exit code {process.returncode}")
            raise RuntimeError(f"the run ended with exit code {process.returncode}; its output is above")
