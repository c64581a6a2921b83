# What answers in scenarios: tests/lab/server.py as a pod.
ARG BASE_IMAGE
FROM ${BASE_IMAGE}
COPY server.py /
USER 65532:65532
ENTRYPOINT ["python3", "-I", "-S", "/server.py", "--address", "0.0.0.0", "--tcp", "8080", "--tcp", "9090", "--udp", "5353"]
