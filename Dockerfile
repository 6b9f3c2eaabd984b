# The crossfade binary, and nothing else, running as an unprivileged user.
#
#   docker build --build-arg VERSION=1.2.3 --tag crossfade .

FROM golang:1.26.8-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
# Named one by one: nothing but source can get into the image or spoil the cache.
COPY bridge bridge
COPY cmd cmd
COPY flags flags
COPY internal internal
COPY jetstream jetstream
COPY legacy_mqtt legacy_mqtt
COPY migrations migrations
COPY pipeline pipeline
ARG VERSION=development
RUN CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=${VERSION}" -o /out/crossfade ./cmd/crossfade

FROM scratch
# For mqtts://, tls:// and sslmode=verify-full against public authorities.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/crossfade /crossfade
# By number: there is no /etc/passwd, and runAsNonRoot checks need a number.
USER 65532:65532
EXPOSE 9464
ENTRYPOINT ["/crossfade"]
CMD ["run"]
