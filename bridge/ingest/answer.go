package ingest

import (
	"context"
	"errors"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/crossfade-io/crossfade/jetstream"
)

// retryAfter is what a sender is told when NATS or the registry is away, in seconds.
const retryAfter = "2"

// warnEvery is how often the reason is logged.
const warnEvery = 10 * time.Second

// service holds what the operations share.
type service struct {
	api     huma.API
	options Options
	warned  atomic.Int64 // Unix nanoseconds
}

func (s *service) warn(ctx context.Context, err error) {
	now := time.Now()
	last := s.warned.Load()
	if now.Sub(time.Unix(0, last)) < warnEvery || !s.warned.CompareAndSwap(last, now.UnixNano()) {
		return
	}
	s.options.Logger.WarnContext(ctx, "messages by HTTP cannot be taken; senders are told to try again", "error", err)
}

// unavailable answers 503. The reason is the operator's business.
func (s *service) unavailable(ctx context.Context, err error) error {
	if ctx.Err() == nil || !errors.Is(err, context.Canceled) { // else the client has gone
		s.warn(ctx, err)
	}
	return huma.ErrorWithHeaders(huma.Error503ServiceUnavailable("this cannot be taken now; send it again in a moment, it counts once"),
		http.Header{"Retry-After": {retryAfter}})
}

// denied turns an Authenticator's error into an answer.
func (s *service) denied(ctx context.Context, err error) error {
	if _, ok := errors.AsType[huma.StatusError](err); ok {
		return err
	}
	switch {
	case errors.Is(err, ErrUnauthorized):
		return huma.ErrorWithHeaders(huma.Error401Unauthorized("send the device's token as X-Provision-Token, or a token with the scope ingest as Authorization: Bearer …"),
			http.Header{"Www-Authenticate": {`Bearer realm="crossfade", ProvisionToken realm="crossfade"`}})
	case errors.Is(err, ErrForbidden):
		return huma.Error403Forbidden("the token is not for this")
	}
	return s.unavailable(ctx, err)
}

// published turns a Publisher's error into an answer.
func (s *service) published(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if refused, ok := errors.AsType[*jetstream.RefusedError](err); ok {
		return huma.Error422UnprocessableEntity(refused.Error())
	}
	return s.unavailable(ctx, err)
}

// statusOf is the HTTP status of an answer.
func statusOf(err error) int {
	if err == nil {
		return http.StatusAccepted
	}
	if e, ok := errors.AsType[huma.StatusError](err); ok {
		return e.GetStatus()
	}
	return http.StatusInternalServerError
}

// detailOf is what an answer says, without its headers and status.
func detailOf(err error) string {
	if m, ok := errors.AsType[*huma.ErrorModel](err); ok {
		return m.Detail
	}
	return err.Error()
}

// waitOf is how many seconds the sender of a message is to wait before it comes again; 0
// if it is not to.
func waitOf(err error) int {
	if h, ok := errors.AsType[huma.HeadersError](err); ok {
		if seconds, err := strconv.Atoi(h.GetHeaders().Get("Retry-After")); err == nil {
			return seconds
		}
	}
	return 0
}

// refuse answers with a problem from outside of a handler.
func (s *service) refuse(ctx huma.Context, err error) {
	if h, ok := errors.AsType[huma.HeadersError](err); ok {
		for name, values := range h.GetHeaders() {
			for _, v := range values {
				ctx.SetHeader(name, v)
			}
		}
	}
	_ = huma.WriteErr(s.api, ctx, statusOf(err), detailOf(err)) // a client that went away needs no answer
}

// bearer is the token of an Authorization header; false where there is none.
func bearer(header string) (string, bool) {
	scheme, token, ok := strings.Cut(header, " ")
	return strings.TrimSpace(token), ok && strings.EqualFold(scheme, "bearer")
}

// plainJSON reports whether a body can be read as it is.
func plainJSON(ctx huma.Context) bool {
	if e := ctx.Header("Content-Encoding"); e != "" && e != "identity" {
		return false
	}
	given := ctx.Header("Content-Type")
	if given == "" {
		return true
	}
	media, _, err := mime.ParseMediaType(given)
	return err == nil && (media == "application/json" || strings.HasPrefix(media, "application/") && strings.HasSuffix(media, "+json"))
}
