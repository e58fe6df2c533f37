"""mmengine's W&B backend, made robust for long runs and sweeps."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from mmdet.registry import VISBACKENDS
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.visualization import WandbVisBackend
from mmengine.visualization.vis_backend import force_init_env

from mmkd.errors import UserError

WANDB = (0, 28)  # the first version with `finish_timeout` and `stop_fn`
_STARTED: list[WandbBackend] = []


@VISBACKENDS.register_module()
class WandbBackend(WandbVisBackend):
    """Log to Weights & Biases; if it is unreachable, keep the run on disk and continue training.

    Differences from mmengine's backend: it uploads code only on request; a run restarted with the same id
    (``WANDB_RUN_ID``) continues; the end of training waits at most ``finish_timeout`` seconds for uploads;
    times of validations and training steps are kept apart.

    Args:
        save_dir: set by the Visualizer.
        init_kwargs: for `wandb.init`, such as ``project``, ``entity``, ``tags``.
        log_code: upload every ``.py`` file below the working directory.
        init_timeout: seconds to wait for W&B before the run continues offline.
        finish_timeout: seconds that the end of training waits for uploads.
        **options: mmengine's ``define_metric_cfg`` and ``watch_kwargs``.

    Attributes:
        stopped: set, from another thread, when the run is stopped through W&B.
        exit_code: the exit code to finish the run with.

    Raises:
        UserError: wandb is missing or too old.
    """

    def __init__(
        self,
        save_dir: str,
        init_kwargs: Mapping[str, Any] | None = None,
        log_code: bool = False,
        init_timeout: float = 60,
        finish_timeout: float = 300,
        **options: Any,
    ) -> None:
        check_wandb()
        super().__init__(save_dir, init_kwargs=dict(init_kwargs or {}), **options)
        self.log_code = log_code
        self.timeouts = {"init_timeout": init_timeout, "finish_timeout": finish_timeout}
        self.stopped = threading.Event()
        self.exit_code = 0
        self._lost = False

    def _init_env(self) -> None:
        import wandb

        _STARTED.append(self)
        os.makedirs(self._save_dir, exist_ok=True)
        self._wandb = wandb
        # wandb deep-copies its settings; a lambda survives that, a bound method does not.
        stop = lambda: self.stopped.set()  # noqa: E731
        settings = wandb.Settings(**self.timeouts, finish_timeout_raises=True, stop_fn=stop)
        arguments: dict[str, Any] = {"dir": self._save_dir, "allow_val_change": True, **self._init_kwargs}
        if os.environ.get("WANDB_RUN_ID") or arguments.get("id"):
            arguments.setdefault("resume", "allow")
        try:
            self._run = wandb.init(settings=settings, **arguments)
        except (wandb.errors.UsageError, wandb.errors.CommError) as error:
            reason = str(error).splitlines()[0]
            if _is_refusal(error):
                raise UserError(
                    "W&B login failed.",
                    expected="an API key, from `wandb login` or WANDB_API_KEY",
                    found=reason,
                    remedy="log in, set WANDB_MODE=offline, or remove WandbBackend from vis_backends",
                ) from error
            arguments.pop("resume", None)
            self._run = wandb.init(settings=settings, **{**arguments, "mode": "offline"})
            print_log(f"Cannot reach W&B ({reason}). {self._how_to_sync()}", "current", level=logging.WARNING)
        for metric in self._define_metric_cfg or []:
            if isinstance(self._define_metric_cfg, dict):
                self._run.define_metric(metric, summary=self._define_metric_cfg[metric])
            else:
                self._run.define_metric(**metric)
        # Training rows contain `iter`; keys without their own step metric use it.
        self._run.define_metric("*", step_metric="iter", step_sync=False)

    @property
    @force_init_env
    def run(self) -> Any:
        """The `wandb.Run`; use only in the main process."""
        return self._run

    def attempt(self, action: Callable[[Any], object]) -> None:
        """Do something with the run; if W&B's process is gone, warn once and continue training.

        Args:
            action: called with the `wandb.Run`.
        """
        run = self.run
        if self._lost:
            return
        try:
            action(run)
        except Exception as error:
            self._lost = True
            late = isinstance(error, TimeoutError)
            problem = "did not accept all data" if late else f"fails ({type(error).__name__}: {error})"
            print_log(f"W&B {problem}. {self._how_to_sync()}", "current", level=logging.WARNING)

    def add_config(self, config: Config, **_: Any) -> None:
        """Log the resolved config, and the code if requested."""
        self.attempt(lambda run: run.config.update(config.to_dict(), allow_val_change=True))
        if self.log_code:
            self.attempt(lambda run: run.log_code())

    def add_scalars(
        self, scalar_dict: dict[str, Any], step: int = 0, file_path: str | None = None, **_: Any
    ) -> None:
        """Log a row. It already contains the step: `iter` here, `epoch` from `WandbSweepHook`."""
        if "iter" not in scalar_dict:  # a row of a validation
            scalar_dict = {
                f"val/{key}" if key in ("time", "data_time") else key: value
                for key, value in scalar_dict.items()
            }
        self.attempt(lambda run: run.log(scalar_dict))

    def close(self) -> None:
        """Finish the run; if that takes too long, say how to upload it later."""
        if hasattr(self, "_run"):
            self.attempt(lambda run: run.finish(exit_code=self.exit_code))

    def _how_to_sync(self) -> str:
        option = "" if self._run.offline else "--include-online "
        folder = os.path.relpath(self._run.settings.sync_dir)
        return f"Training is not affected; upload the run later with: wandb sync {option}{folder}"


def _is_refusal(error: Exception) -> bool:
    """Whether the credentials are wrong; wandb raises AuthenticationError also when offline."""
    import wandb

    if isinstance(error, wandb.errors.AuthenticationError):
        response = getattr(error.__cause__, "response", None)
        return error.__cause__ is None or getattr(response, "http_status", None) in (401, 403)
    return isinstance(error, wandb.errors.UsageError)


def finish_failed(exit_code: int) -> None:
    """Finish open runs after an error.

    wandb detects a script's exit code itself, but not in ``sys.exit(main())``: there Python looks up
    `sys.exit` before wandb replaces it.

    Args:
        exit_code: any code but 0.
    """
    for backend in _STARTED:
        backend.exit_code = exit_code
        backend.close()


def check_wandb() -> None:
    """Raise `UserError` if wandb is missing or too old."""
    wanted = ".".join(map(str, WANDB))
    try:
        found = version("wandb")
    except PackageNotFoundError:
        found = ""
    if not found or tuple(int(part) for part in found.split(".")[:2]) < WANDB:
        raise UserError(
            "The config logs to Weights & Biases.",
            expected=f"wandb {wanted} or newer",
            found=f"wandb {found}" if found else "no wandb",
            remedy=f"pip install 'wandb>={wanted}', or remove WandbBackend and its hook from the config",
        )
