# syntax=docker/dockerfile:1
# Two stages: the tools that build the environment stay in the first, and the image runs as an unprivileged user.
# The base images are named by tag. To pin one, append the digest that you have checked: python:3.12-slim@sha256:...
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
RUN python -m venv /venv
ENV PATH=/venv/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /source
COPY pyproject.toml requirements.hashed.lock README.md LICENSE ./
# The dependencies in a layer of their own: a change of the code does not download them again. The lock has what the
# product and its extras need, each with the hashes of its files, and no development tools.
RUN pip install --require-hashes -r requirements.hashed.lock
COPY core core
COPY hpo hpo
COPY studies studies
COPY src src
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
