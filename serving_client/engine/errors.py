"""Errors of the engine, with vLLM's messages and status codes."""

from __future__ import annotations

NOT_FINITE = "The model answered with NaN or infinity: check the adapter's weights."


class EngineError(Exception):
    """Base class of all errors that this engine raises on purpose."""


class ModelUnusable(EngineError):
    """The base model's folder cannot be served; the message names the folder and the fix."""


class AdapterUnusable(EngineError):
    """The adapter folder cannot be served by this engine; the message says why."""


class AdapterMissing(AdapterUnusable):
    """The folder lacks adapter_config.json or adapter_model.safetensors."""


class ApiError(EngineError):
    """An HTTP error: status, vLLM's error type, message, and the field that it is about."""

    def __init__(self, status: int, type_: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.type = type_
        self.message = message
        self.param = param

    def body(self) -> dict[str, object]:
        """Return the error's JSON body as vLLM writes it."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.status}}


def invalid_input(message: str) -> ApiError:
    """Return the 400 error of the LoRA endpoints."""
    return ApiError(400, "InvalidUserInput", message)


def bad_request(message: str, param: str | None = None) -> ApiError:
    """Return the 400 error of the completion endpoints; `param` is the request's field at fault."""
    return ApiError(400, "BadRequestError", message, param)


def missing_field(field: str, count: int) -> ApiError:
    """Return the 400 error of a missing field, as vLLM words it; `count` is the number of fields in the body."""
    detail = {"type": "missing", "loc": f"body.{field}", "msg": "Field required", "input": f"<dict of {count} items>"}
    return ApiError(400, "Bad Request", f"1 validation error:\n  {detail}", f"body.{field}")


def not_found(message: str, param: str | None = None) -> ApiError:
    """Return a 404 error; `param` is the request's field at fault, if it is one."""
    return ApiError(404, "NotFoundError", message, param)


def internal(message: str) -> ApiError:
    """Return a 500 error."""
    return ApiError(500, "InternalServerError", message)


def add_lora_failed(reason: str) -> ApiError:
    """Return the 500 error with which vLLM reports weights that cannot be read or used."""
    return internal(
        f"Call to add_lora method failed: Worker failed with error '{reason}', "
        "please check the stack trace above for the root cause"
    )
