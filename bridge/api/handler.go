package api

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path"
	"regexp"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
)

// request is what the layers of one request tell each other. It travels in the
// context, since huma's handlers get nothing else of what came before them.
type request struct {
	id     string
	caller string // name of the back end's token
	cause  error  // why it failed, for the log
	broke  bool   // by a panic of ours
	cut    bool   // its body ended too soon, or could not be read
	gone   bool   // nobody takes the answer any more
}

type requestKey struct{}

// requestOf is nil outside of a request.
func requestOf(ctx context.Context) *request {
	r, _ := ctx.Value(requestKey{}).(*request)
	return r
}

func unwrap(ctx huma.Context) (*http.Request, http.ResponseWriter) { return humago.Unwrap(ctx) }

// requestID is what a client may call its request.
var requestID = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// statusGone is what a request counts as whose client went away before it had sent
// everything, or before it had the answer: it is no failure of ours.
const statusGone = 499

// unmatched is the route of requests that no operation is for.
const unmatched = "unmatched"

// ServeHTTP is the outermost layer: it bounds, names, measures and logs every request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	q := &request{id: r.Header.Get("X-Request-ID")}
	if !requestID.MatchString(q.id) {
		q.id = newRequestID()
	}
	ctx, cancel := context.WithTimeout(context.WithValue(r.Context(), requestKey{}, q), s.config.RequestTimeout)
	defer cancel()
	r = r.WithContext(ctx)
	rec := &recorder{ResponseWriter: w}
	h := w.Header()
	h.Set("X-Request-ID", q.id)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	route := unmatched
	select {
	case s.slots <- struct{}{}:
		s.inFlight.Inc()
		route = s.route(rec, r, q)
		s.inFlight.Dec()
		<-s.slots
	default:
		writeProblem(rec, r, withHeader(problem(http.StatusServiceUnavailable, "too many requests at once; try again in a moment"), "Retry-After", "1"))
	}
	q.gone = q.gone || rec.failed != nil && q.cause == nil
	s.observe(ctx, q, route, rec.status, time.Since(began), r)
}

func newRequestID() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// route finds the operation and runs it. It returns the route's template.
func (s *Server) route(w *recorder, r *http.Request, q *request) (route string) {
	route = unmatched
	defer func() {
		if p := recover(); p != nil {
			if p == http.ErrAbortHandler {
				panic(p)
			}
			// huma panics when it cannot write an answer.
			if err, ok := p.(error); ok && w.failed != nil && errors.Is(err, w.failed) {
				q.gone = true
				note(r.Context(), err)
				return
			}
			q.broke = true
			note(r.Context(), fmt.Errorf("panic: %v\n%s", p, debug.Stack()))
			if w.status == 0 {
				writeProblem(w, r, problem(http.StatusInternalServerError, "this went wrong on our side; the operator finds it in the log under the X-Request-ID of this answer"))
			}
		}
	}()
	if r.ContentLength > MaxBatch {
		writeProblem(w, r, problem(http.StatusRequestEntityTooLarge, "the body is larger than %d bytes", MaxBatch))
		return route
	}
	r.Body = &requestBody{http.MaxBytesReader(w, r.Body, MaxBatch+1), q}
	// The mux would redirect to a cleaned path; a name may hold what it cleans away.
	if path.Clean(r.URL.Path) != r.URL.Path {
		writeProblem(w, r, problem(http.StatusNotFound, "there is nothing at this path"))
		return route
	}
	h, pattern := s.mux.Handler(r)
	if pattern == "" {
		s.unmatched(w, r, h)
		return route
	}
	route = pattern // before it runs: it may panic
	s.mux.ServeHTTP(w, r)
	return route
}

// requestBody notes when a client does not send what it announced. To huma that is the
// same as one that does not send it in time (408), and not a failure of ours.
type requestBody struct {
	io.ReadCloser
	request *request
}

func (b *requestBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if _, large := errors.AsType[*http.MaxBytesError](err); err == nil || err == io.EOF || large {
		return n, err
	}
	if slow, ok := errors.AsType[net.Error](err); ok && slow.Timeout() {
		return n, err
	}
	b.request.cut = true
	return n, incompleteError{err}
}

// incompleteError is a body that could not be read to its end.
type incompleteError struct{ error }

func (e incompleteError) Unwrap() error { return e.error }
func (incompleteError) Timeout() bool   { return true } // as net.Error has it
func (incompleteError) Temporary() bool { return false }

// unmatched answers as the mux does, but with a problem.
func (s *Server) unmatched(w *recorder, r *http.Request, h http.Handler) {
	probe := &recorder{ResponseWriter: discard{http.Header{}}}
	h.ServeHTTP(probe, r)
	if probe.status == http.StatusMethodNotAllowed {
		allow := probe.Header().Get("Allow")
		writeProblem(w, r, withHeader(problem(http.StatusMethodNotAllowed, "only %s can be done here", allow), "Allow", allow))
		return
	}
	writeProblem(w, r, problem(http.StatusNotFound, "there is nothing at this path; see /openapi.json"))
}

// observe counts the request, and logs it: what failed on our side as an error.
// Neither headers, which hold secrets, nor the query are logged.
func (s *Server) observe(ctx context.Context, q *request, route string, status int, took time.Duration, r *http.Request) {
	if status == 0 {
		status = http.StatusOK
	}
	canceled := q.cause != nil && errors.Is(ctx.Err(), context.Canceled)
	gone := !q.broke && (q.cut || q.gone || canceled)
	if gone {
		status = statusGone
	}
	s.requests.WithLabelValues(route, strconv.Itoa(status)).Inc()
	s.seconds.WithLabelValues(route).Observe(took.Seconds())
	fields := []any{"request_id", q.id, "route", route, "status", status, "seconds", took.Seconds(), "remote", r.RemoteAddr, "caller", q.caller}
	switch {
	case gone:
		s.log.Debug("an API client went away", append(fields, "error", q.cause)...)
	case q.cause != nil:
		s.trouble.note(q.cause)
		s.log.Error("an API request failed", append(fields, "error", q.cause)...)
	default:
		if status < http.StatusBadRequest && route != unmatched {
			s.trouble.note(nil)
		}
		s.log.Debug("an API request", fields...)
	}
}

// writeProblem writes an error as application/problem+json, with its headers.
func writeProblem(w http.ResponseWriter, r *http.Request, err error) {
	status := http.StatusInternalServerError
	var body any = huma.NewError(status, "")
	if se, ok := errors.AsType[huma.StatusError](err); ok {
		status, body = se.GetStatus(), se
	}
	if he, ok := errors.AsType[huma.HeadersError](err); ok {
		for name, values := range he.GetHeaders() {
			w.Header()[name] = values
		}
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_ = json.NewEncoder(w).Encode(body) // a client that went away needs no answer
	}
}

// recorder remembers the status, and whether the answer could be written.
type recorder struct {
	http.ResponseWriter
	status int
	failed error // of the first write that failed: the client is gone, or reads too slowly
}

func (w *recorder) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *recorder) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	n, err := w.ResponseWriter.Write(b)
	if err != nil && w.failed == nil {
		w.failed = err
	}
	return n, err
}

// Unwrap lets http.ResponseController set deadlines.
func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// discard takes an answer that nobody is to see.
type discard struct{ header http.Header }

func (d discard) Header() http.Header         { return d.header }
func (d discard) Write(b []byte) (int, error) { return len(b), nil }
func (d discard) WriteHeader(int)             {}
