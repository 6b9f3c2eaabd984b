package flags

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	of "github.com/open-feature/go-sdk/openfeature"
)

// exchange speaks HTTP with a flag service and believes it nothing: bounded times
// and sizes, no redirects (they would carry the credential elsewhere).
type exchange struct {
	opts      RemoteOptions
	base      *url.URL
	transport *http.Transport
	client    *http.Client
}

// outage is a failure of the service as a whole, as opposed to its answer about a
// flag. Enough of them in a row, or a final one, and the service is down.
type outage struct {
	err   error
	final bool          // asking again at once is useless
	after time.Duration // what the service asked us to wait
}

func (o *outage) Error() string { return o.err.Error() }
func (o *outage) Unwrap() error { return o.err }

func outagef(format string, args ...any) *outage { return &outage{err: fmt.Errorf(format, args...)} }

func newExchange(o RemoteOptions) (*exchange, error) {
	base, err := url.Parse(o.URL)
	if err != nil {
		return nil, errors.New("RemoteOptions.URL is not a URL")
	}
	conf, err := o.tls()
	if err != nil {
		return nil, err
	}
	t := &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		TLSClientConfig:        conf,
		TLSHandshakeTimeout:    o.Timeout,
		ResponseHeaderTimeout:  o.Timeout,
		MaxResponseHeaderBytes: 64 << 10,
		MaxConnsPerHost:        32,
		MaxIdleConnsPerHost:    16,
		IdleConnTimeout:        90 * time.Second,
		DisableCompression:     true,
		ForceAttemptHTTP2:      true,
	}
	return &exchange{opts: o, base: base, transport: t, client: &http.Client{
		Transport:     t,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

func (e *exchange) close() { e.transport.CloseIdleConnections() }

// post sends a body to a path below the base URL. The caller closes the answer.
func (e *exchange) post(ctx context.Context, path, contentType string, body []byte) (*http.Response, *outage) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.base.JoinPath(path).String(), bytes.NewReader(body))
	if err != nil {
		return nil, outagef("building the request: %w", err)
	}
	req.Header.Set("Content-Type", contentType)
	req.Header.Set("User-Agent", "crossfade")
	if strings.HasPrefix(contentType, "application/connect") || strings.HasPrefix(path, flagdPackage) {
		req.Header.Set("Connect-Protocol-Version", "1")
	}
	if e.opts.Token != nil {
		token, err := e.opts.Token()
		if err != nil {
			return nil, &outage{err: fmt.Errorf("reading the credential: %w", err), final: true}
		}
		if e.opts.TokenHeader == "Authorization" {
			token = "Bearer " + token
		}
		req.Header.Set(e.opts.TokenHeader, token)
	}
	rsp, err := e.client.Do(req)
	if err != nil {
		return nil, &outage{err: e.scrub(err)}
	}
	return rsp, nil
}

// ask posts JSON and returns status, header and body, no larger than MaxBody, all
// within Timeout. Before it makes anything else of the status, the caller asks refusal.
func (e *exchange) ask(ctx context.Context, path string, request any) (int, http.Header, []byte, *outage) {
	body, err := json.Marshal(request)
	if err != nil {
		return 0, nil, nil, outagef("writing the request: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, e.opts.Timeout)
	defer cancel()
	rsp, out := e.post(ctx, path, "application/json", body)
	if out != nil {
		return 0, nil, nil, out
	}
	defer rsp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(rsp.Body, e.opts.MaxBody+1))
	switch {
	case err != nil:
		return 0, nil, nil, &outage{err: fmt.Errorf("reading the answer: %w", e.scrub(err))}
	case int64(len(answer)) > e.opts.MaxBody:
		return 0, nil, nil, outagef("the answer is larger than %d bytes", e.opts.MaxBody)
	}
	return rsp.StatusCode, rsp.Header, answer, nil
}

// refusal is the outage that a status stands for, whatever the body says.
func refusal(status int, header http.Header) *outage {
	switch {
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return &outage{err: fmt.Errorf("the service refuses us (HTTP %d): check the token or the client certificate", status), final: true}
	case status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable:
		return &outage{err: fmt.Errorf("the service is overloaded (HTTP %d): lower the rate of evaluations", status),
			final: status == http.StatusTooManyRequests, after: retryAfter(header, time.Now())}
	case status >= 500 && status != http.StatusNotImplemented: // 501 is flagd's word for another version
		return outagef("the service fails (HTTP %d)", status)
	case status >= 300 && status < 400:
		return outagef("the service redirects (HTTP %d), and we do not follow: use the URL that it redirects to", status)
	}
	return nil
}

// retryAfter reads Retry-After: seconds or a date (RFC 9110, section 10.2.3).
func retryAfter(h http.Header, now time.Time) time.Duration {
	text := h.Get("Retry-After")
	if seconds, err := strconv.ParseUint(text, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if date, err := http.ParseTime(text); err == nil {
		return max(0, date.Sub(now))
	}
	return 0
}

// scrub keeps the credential out of an error, should it have got there.
func (e *exchange) scrub(err error) error {
	if text := e.scrubText(err.Error()); text != err.Error() {
		return errors.New(text)
	}
	return err
}

func (e *exchange) scrubText(text string) string {
	if e.opts.Token == nil {
		return text
	}
	if token, err := e.opts.Token(); err == nil && token != "" {
		return strings.ReplaceAll(text, token, "[redacted]")
	}
	return text
}

// object reads a JSON object, names case-sensitive, and nothing after it.
func object(body []byte) (map[string]json.RawMessage, bool) {
	var members map[string]json.RawMessage
	if json.Unmarshal(body, &members) != nil || members == nil {
		return nil, false
	}
	return members, true
}

// text reads a member that must be a string; absent and null are "".
func text(members map[string]json.RawMessage, name string) (string, bool) {
	raw, ok := members[name]
	if !ok {
		return "", true
	}
	var s *string
	if json.Unmarshal(raw, &s) != nil {
		return "", false
	}
	if s == nil {
		return "", true
	}
	return *s, true
}

// success reads the answer that flagd and OFREP share: value, reason, variant.
func success(members map[string]json.RawMessage) of.StringResolutionDetail {
	reason, goodReason := text(members, "reason")
	variant, goodVariant := text(members, "variant")
	raw, ok := members["value"]
	var value *string
	switch {
	case !ok || string(raw) == "null":
		return refused(of.NewGeneralResolutionError(fmt.Sprintf("the service gives no value (reason %q): the flag is disabled, or has no default variant", clip(reason, 64))))
	case json.Unmarshal(raw, &value) != nil:
		return refused(of.NewTypeMismatchResolutionError("the flag's value is no string: its variants must be the names of stages"))
	case !goodReason || !goodVariant:
		return refused(of.NewParseErrorResolutionError("reason or variant is no string"))
	}
	return of.StringResolutionDetail{Value: *value,
		ProviderResolutionDetail: of.ProviderResolutionDetail{Reason: of.Reason(reason), Variant: variant}}
}

func refused(err of.ResolutionError) of.StringResolutionDetail {
	return of.StringResolutionDetail{ProviderResolutionDetail: failed(err)}
}
