package api

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/jackc/pgx/v5/pgconn"
)

// Whatever goes wrong is answered as application/problem+json (RFC 9457) and says
// what the caller can do about it. What only the operator can mend is named in the
// log, under the request's ID, and never in the answer.

// problem is an answer that says no.
func problem(status int, detail string, args ...any) error {
	return huma.NewError(status, fmt.Sprintf(detail, args...))
}

// withHeader adds a header to a problem.
func withHeader(err error, name, value string) error {
	h := http.Header{}
	h.Set(name, value)
	return huma.ErrorWithHeaders(err, h)
}

// unavailable answers 503 and notes the cause for the log.
func unavailable(ctx context.Context, operation string, cause error) error {
	note(ctx, fmt.Errorf("%s: %w", operation, cause))
	return withHeader(problem(http.StatusServiceUnavailable, "this cannot be done now; try again in a moment"), "Retry-After", "1")
}

// broken answers 500 and notes the cause for the log.
func broken(ctx context.Context, operation string, cause error) error {
	note(ctx, fmt.Errorf("%s: %w", operation, cause))
	return problem(http.StatusInternalServerError, "this went wrong on our side; the operator finds it in the log under the X-Request-ID of this answer")
}

// note keeps the first cause of a request's failure for its log line.
func note(ctx context.Context, cause error) {
	if r := requestOf(ctx); r != nil && r.cause == nil {
		r.cause = cause
	}
}

// Two kinds of errors of PostgreSQL that are not the operator's business.
var (
	errNotThere = errors.New("no row has such a key")            // of a look-up
	errRefused  = errors.New("PostgreSQL cannot hold the value") // of a write
)

// dataError reports whether PostgreSQL refuses the value itself (SQLSTATE class 22
// and 23: in adopted tables IDs may be of other types than text), not the service.
func dataError(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && len(pg.Code) == 5 && (pg.Code[:2] == "22" || pg.Code[:2] == "23")
}

// databaseProblem answers an error of PostgreSQL.
func databaseProblem(ctx context.Context, operation string, err error) error {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		switch {
		case len(pg.Code) != 5:
		case pg.Code[:2] == "42", pg.Code[:2] == "0A", pg.Code[:2] == "P0", pg.Code[:2] == "2F":
			return broken(ctx, operation, err) // schema, privileges, a trigger: waiting mends none of them
		}
	}
	return unavailable(ctx, operation, err)
}

// tooMany answers a caller that comes too often.
func tooMany(wait time.Duration) error {
	seconds := strconv.Itoa(max(1, int(math.Ceil(wait.Seconds()))))
	return withHeader(problem(http.StatusTooManyRequests, "too many requests; come more slowly"), "Retry-After", seconds)
}
