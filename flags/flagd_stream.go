package flags

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// The frames of a Connect stream: one byte of flags, the length in 4 bytes,
// big-endian, then the message.
const (
	frameHeader     = 5
	frameCompressed = 0x01
	frameEnd        = 0x02
)

// follow keeps flagd's event stream open until ctx ends. That it cannot be opened
// harms nobody: changes are then seen on the caller's beat.
func (p *flagd) follow(ctx context.Context, changed func()) {
	select { // the first probe finds out which version the service speaks
	case <-p.remote.first:
	case <-ctx.Done():
		return
	}
	wait, silent := p.opts.RetryMin, false
	for ctx.Err() == nil {
		began := time.Now()
		err := p.stream(ctx, func() { silent = false; changed() })
		if ctx.Err() != nil {
			return
		}
		if !silent {
			p.remote.log.Info("flagd's event stream ended; changes are seen on the beat until it is back",
				"url", p.base.String(), "error", p.scrub(err))
			silent = true
		}
		if time.Since(began) > p.opts.RetryMax {
			wait = p.opts.RetryMin
		}
		p.remote.pause(ctx, wait)
		wait = min(2*wait, p.opts.RetryMax)
	}
}

// stream opens the stream, calls changed at once (what changed while there was no
// stream nobody has told) and upon every change of our flag, and returns when the
// stream ends.
func (p *flagd) stream(ctx context.Context, changed func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	idle := time.AfterFunc(p.opts.StreamIdle, cancel)
	defer idle.Stop()
	rsp, out := p.post(ctx, p.path("EventStream"), "application/connect+json", []byte("\x00\x00\x00\x00\x02{}"))
	if out != nil {
		return out
	}
	defer rsp.Body.Close()
	if rsp.StatusCode != http.StatusOK || !strings.HasPrefix(rsp.Header.Get("Content-Type"), "application/connect+json") {
		return fmt.Errorf("HTTP %d, %s: no event stream", rsp.StatusCode, clip(rsp.Header.Get("Content-Type"), 64))
	}
	changed()
	for body := bufio.NewReader(rsp.Body); ; {
		message, err := p.frame(body)
		if err != nil {
			if ctx.Err() != nil {
				return fmt.Errorf("silent for %s", p.opts.StreamIdle)
			}
			return err
		}
		idle.Reset(p.opts.StreamIdle)
		concerns, err := p.event(message)
		if err != nil {
			return err
		}
		if concerns {
			changed()
		}
	}
}

// frame reads one message of at most MaxBody bytes.
func (p *flagd) frame(body io.Reader) ([]byte, error) {
	var header [frameHeader]byte
	if _, err := io.ReadFull(body, header[:]); err != nil {
		return nil, fmt.Errorf("the stream broke off: %w", err)
	}
	size := int64(binary.BigEndian.Uint32(header[1:]))
	switch {
	case size > p.opts.MaxBody:
		return nil, fmt.Errorf("an event of %d bytes, the limit is %d", size, p.opts.MaxBody)
	case header[0]&frameCompressed != 0:
		return nil, errors.New("a compressed event, and we asked for none")
	}
	message := make([]byte, size)
	if _, err := io.ReadFull(body, message); err != nil {
		return nil, fmt.Errorf("the stream broke off: %w", err)
	}
	if header[0]&frameEnd != 0 {
		return nil, fmt.Errorf("flagd ended the stream: %s", clip(p.scrubText(string(message)), 256))
	}
	return message, nil
}

// event reports whether an event concerns our flag. Where it does not say which
// flags changed, it does.
func (p *flagd) event(message []byte) (bool, error) {
	var e struct {
		Type string `json:"type"`
		Data struct {
			Flags map[string]json.RawMessage `json:"flags"`
		} `json:"data"`
	}
	if err := json.Unmarshal(message, &e); err != nil && e.Type == "" {
		return false, errors.New("an event that is not flagd's")
	}
	switch e.Type {
	case "provider_shutdown":
		return false, errors.New("flagd shuts down")
	case "configuration_change":
		_, ours := e.Data.Flags[FlagKey]
		return ours || e.Data.Flags == nil, nil
	}
	return false, nil // provider_ready, keep_alive, and what is still to come
}
