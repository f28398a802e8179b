# One image for web, worker, beat, gpu-worker and router: the command says which.
#   docker build -t adapterhub .                                                      torch for CPUs
#   docker build -t adapterhub:gpu --build-arg TORCH_INDEX=https://pypi.org/simple .  torch for CUDA
FROM python:3.11-slim AS build

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /build
COPY pyproject.toml ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
    > requirements.txt
# torch alone first: the other packages would bring the build of their own index.
RUN pip install --no-deps --index-url "$TORCH_INDEX" "$(grep '^torch==' requirements.txt)"
RUN pip install -r requirements.txt

FROM python:3.11-slim

ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 ADAPTERHUB_HOME=/var/lib/adapterhub
# A volume takes the owner of the folder that it is first mounted on.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /var/lib/adapterhub --shell /usr/sbin/nologin adapterhub \
    && install -d -o adapterhub -g adapterhub /var/lib/adapterhub /var/lib/adapterhub/models \
       /var/lib/adapterhub/served /var/lib/adapterhub/router
COPY --from=build /opt/venv /opt/venv
WORKDIR /app
COPY manage.py pyproject.toml README.md LICENSE ./
COPY templates templates
COPY serving_client serving_client
COPY adapterhub adapterhub
COPY registry registry
COPY training training
# The command `adapterhub` and the version that it tells; the code stays here. In this stage, so that a change of the
# code changes no layer with torch in it.
RUN pip install --no-cache-dir --no-deps --editable .
USER 10001:10001
EXPOSE 8000
CMD ["python", "-m", "uvicorn", "adapterhub.asgi:application", "--host", "0.0.0.0", "--port", "8000"]
