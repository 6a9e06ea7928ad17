# syntax=docker/dockerfile:1
# Two stages: what builds the environment stays behind; what runs it is nobody in particular.
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
RUN python -m venv /venv
ENV PATH=/venv/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /source
COPY requirements.lock ./
RUN pip install --requirement requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY core core
COPY hpo hpo
RUN pip install --no-deps --no-build-isolation .

FROM python:${PYTHON}-slim
RUN groupadd --system --gid 10001 hpo \
    && useradd --system --uid 10001 --gid hpo --home-dir /home/hpo --create-home hpo \
    && install --directory --owner=hpo --group=hpo --mode=0700 /cache /artifacts \
    && install --directory --owner=hpo --group=hpo /studies /work
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH HPO_CACHE=/cache PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER hpo
WORKDIR /work
ENTRYPOINT ["hpo"]
CMD ["--help"]
