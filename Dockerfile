# syntax=docker/dockerfile:1
# Two stages: the tools that build the environment stay in the first, and the image runs as an unprivileged user.
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
RUN python -m venv /venv
ENV PATH=/venv/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /source
COPY pyproject.toml requirements.lock README.md LICENSE ./
# The dependencies at their locked versions, without the development tools, in a separate layer: a change of the code
# does not download them again. The package is installed from an empty src/ here and has no modules yet.
RUN mkdir src && pip install --constraint requirements.lock setuptools && \
    pip install --constraint requirements.lock --no-build-isolation '.[s3]'
COPY core core
COPY hpo hpo
COPY studies studies
COPY src src
RUN pip install --force-reinstall --no-deps --no-build-isolation .

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
