"""The engine connects requests with the runtime: it plans, submits and collects ticks, and delivers results."""

from medha_jax.engine.admission import check_request
from medha_jax.engine.error_log import ErrorLog
from medha_jax.engine.events import (
    Completed,
    Completion,
    Course,
    EngineEvent,
    Failed,
    FirstToken,
    GenerationRequest,
    NewTokens,
    PhaseTimings,
    Prefilled,
    PromptScored,
    Queued,
    RequestTotals,
    TokenLogprobs,
)
from medha_jax.engine.executor import Executor
from medha_jax.engine.generation import Output
from medha_jax.engine.loading import EngineLoader
from medha_jax.engine.loop import Engine, OnTick
from medha_jax.engine.model_files import ModelFiles
from medha_jax.engine.offline import ModelOutputError, OfflineEngine, generate, generate_outputs
from medha_jax.engine.output import RequestOutput, check_stops, text_outputs
from medha_jax.engine.request_ledger import END_REASONS, FINISH_REASONS, RequestCounts
from medha_jax.engine.scheduling import scheduler_for
from medha_jax.engine.service import STOP_SECONDS, EngineService, Listener, NotServingError
from medha_jax.engine.sizing import sized_for
from medha_jax.engine.tick_report import ChunkReport, Load, TenantLoad, TickReport
from medha_jax.scheduler.request import OnDeadline, Slo
from medha_jax.scheduler.scheduler import QueueFullError
from medha_jax.scheduler.time_model import FittedTimeModel

__all__ = [
    "END_REASONS",
    "FINISH_REASONS",
    "STOP_SECONDS",
    "ChunkReport",
    "Completed",
    "Completion",
    "Course",
    "Engine",
    "EngineEvent",
    "EngineLoader",
    "EngineService",
    "ErrorLog",
    "Executor",
    "Failed",
    "FirstToken",
    "FittedTimeModel",
    "GenerationRequest",
    "Listener",
    "Load",
    "ModelFiles",
    "ModelOutputError",
    "NewTokens",
    "NotServingError",
    "OfflineEngine",
    "OnDeadline",
    "OnTick",
    "Output",
    "PhaseTimings",
    "Prefilled",
    "PromptScored",
    "QueueFullError",
    "Queued",
    "RequestCounts",
    "RequestOutput",
    "RequestTotals",
    "Slo",
    "TenantLoad",
    "TickReport",
    "TokenLogprobs",
    "check_request",
    "check_stops",
    "generate",
    "generate_outputs",
    "scheduler_for",
    "sized_for",
    "text_outputs",
]
