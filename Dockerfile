# Two images, each with the packages of its lock file alone. The last stage is for web, worker, beat and gpu-worker: the
# command says which.
#   docker build -t adapterhub .                            torch for CPUs
#   docker build -t adapterhub-gpu --build-arg TORCH=cuda . torch for CUDA, and the C compiler that Triton calls
#   docker build -t adapterhub-router --target router .     the data plane: no Django, no torch, no Postgres driver
# Each has the list of its packages, with their licences, in /opt/venv/sbom.cdx.json.
FROM python:3.11-slim AS python

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /build

FROM python AS sbom

COPY requirements/sbom.lock requirements/
RUN pip install --require-hashes --no-deps -r requirements/sbom.lock && mv /opt/venv /opt/sbom

FROM python AS router-packages

COPY requirements/router.lock requirements/
RUN pip install --require-hashes --no-deps -r requirements/router.lock && pip check
RUN --mount=from=sbom,source=/opt/sbom,target=/opt/sbom \
    /opt/sbom/bin/python -m cyclonedx_py environment /opt/venv --output-file /opt/venv/sbom.cdx.json

FROM python AS app-packages

ARG TORCH=cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY requirements/cuda.lock requirements/
# torch before the rest, so that a new version of another package changes no layer with torch in it. The index of CPU
# builds has hashes of its own; there the version alone is held.
RUN case "$TORCH" in \
    cuda) pip install --require-hashes --no-deps -r requirements/cuda.lock ;; \
    cpu) pip install --no-deps --index-url "$TORCH_INDEX" "$(grep -o '^torch==[^ ]*' requirements/cuda.lock)" ;; \
    *) echo "TORCH is $TORCH: give cpu or cuda." >&2; exit 1 ;; esac
COPY requirements/app.lock requirements/
RUN pip install --require-hashes --no-deps -r requirements/app.lock && pip check
RUN --mount=from=sbom,source=/opt/sbom,target=/opt/sbom \
    /opt/sbom/bin/python -m cyclonedx_py environment /opt/venv --output-file /opt/venv/sbom.cdx.json

FROM python:3.11-slim AS runtime

ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 ADAPTERHUB_HOME=/var/lib/adapterhub
# A volume takes the owner of the folder that it is first mounted on.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /var/lib/adapterhub --shell /usr/sbin/nologin adapterhub \
    && install -d -o adapterhub -g adapterhub /var/lib/adapterhub /var/lib/adapterhub/models \
       /var/lib/adapterhub/served /var/lib/adapterhub/router
WORKDIR /app

FROM runtime AS router

COPY --from=router-packages /opt/venv /opt/venv
COPY LICENSE ./
COPY serving_client serving_client
USER 10001:10001
EXPOSE 8080
CMD ["python", "-m", "serving_client.router", "--help"]

FROM runtime

ARG TORCH=cpu
# Without a compiler the embedded engine on a GPU would run without its Triton kernels.
RUN if [ "$TORCH" = cuda ]; then apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*; fi
COPY --from=app-packages /opt/venv /opt/venv
COPY manage.py pyproject.toml setup.py README.md LICENSE ./
COPY templates templates
COPY serving_client serving_client
COPY adapterhub adapterhub
COPY registry registry
COPY training training
# The command `adapterhub` and the version that it tells; the code stays here. In this stage, so that a change of the
# code changes no layer with torch in it. setuptools is one of the locked packages.
RUN pip install --no-cache-dir --no-deps --no-build-isolation --editable .
USER 10001:10001
EXPOSE 8000
CMD ["python", "-m", "adapterhub.web", "--host", "0.0.0.0", "--port", "8000"]
