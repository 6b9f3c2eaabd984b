package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"github.com/crossfade-io/crossfade/internal/config"
	"github.com/crossfade-io/crossfade/internal/redact"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

type quarantineShowCommand struct {
	ID       int64           `arg:"" name:"id" help:"The row's ID, as crossfade quarantine list shows it."`
	Raw      string          `placeholder:"FILE" help:"Write the body as it came to a new file that only you can read, or to standard output (-), and show nothing else. It holds the device's provision_token in clear."`
	Output   string          `enum:"text,json" default:"text" help:"Form of the answer: ${enum}."`
	Common   config.Common   `embed:"" group:"General"`
	Database config.Database `embed:"" group:"PostgreSQL"`
}

// Help is shown by --help below the summary.
func (quarantineShowCommand) Help() string {
	return `The provision_token is left out of the payload and of the raw body, and bytes that would change a terminal are escaped; --raw writes the bytes as they came. A body that is no text is shown as a hex dump. LEDGER is what the ledger remembers of the message: "quarantined", "written" (another copy or row took effect: a replay will only remove this one), or nothing once the ledger's retention is over. Exit code 3 when there is no such row.

Examples:

  crossfade quarantine show 1017
  crossfade quarantine show 1017 --output json
  crossfade quarantine show 1017 --raw body.json`
}

// Run shows the row, or writes its body.
func (q *quarantineShowCommand) Run(ctx context.Context, c *console) error {
	s, err := openStore(ctx, q.Database)
	if err != nil {
		return err
	}
	defer s.Close()
	row, ledger, err := s.OneQuarantined(ctx, q.ID)
	switch {
	case err != nil:
		return err
	case row == nil:
		return fmt.Errorf("%w: there is no row %d; it was replayed, purged, or dropped by retention", errNo, q.ID)
	case q.Raw != "":
		return q.writeRaw(c, row)
	case q.Output == "json":
		return q.showJSON(c.out, row, ledger)
	}
	return q.showText(c.out, row, ledger)
}

func (q *quarantineShowCommand) writeRaw(c *console, row *store.Quarantined) error {
	body := row.Raw
	if body == nil {
		body = row.Payload // of the service before this one, which kept nothing else
	}
	switch {
	case body == nil:
		return fmt.Errorf("%w: row %d holds no body", errNo, q.ID)
	case q.Raw != "-":
		f, err := os.OpenFile(q.Raw, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return fmt.Errorf("write the body: %w", err)
		}
		_, err = f.Write(body)
		if err = errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("write the body: %w", err)
		}
		return nil
	case c.terminal:
		return usageError{errors.New("the bytes could change your terminal: redirect standard output, or name a file after --raw")}
	}
	_, err := c.out.Write(body)
	return err
}

// ledgerJSON is what the ledger says.
type ledgerJSON struct {
	Outcome     string    `json:"outcome"`
	Path        string    `json:"path"`
	CommittedAt time.Time `json:"committed_at"`
}

func ledgerOf(l *store.LedgerEntry) *ledgerJSON {
	if l == nil {
		return nil
	}
	j := &ledgerJSON{"quarantined", l.Path.String(), l.CommittedAt}
	if l.Written {
		j.Outcome = "written"
	}
	return j
}

func (q *quarantineShowCommand) showJSON(out io.Writer, row *store.Quarantined, ledger *store.LedgerEntry) error {
	answer := struct {
		quarantinedJSON
		Ledger  *ledgerJSON     `json:"ledger"`
		Payload json.RawMessage `json:"payload"`
		Raw     *string         `json:"raw"`
		RawHex  *string         `json:"raw_hex,omitempty"` // instead of raw, for what is no UTF-8
	}{quarantinedJSON: jsonRow(row), Ledger: ledgerOf(ledger)}
	if v, ok := redact.JSON(row.Payload, redact.Cut); ok {
		answer.Payload = redact.Encode(v, "")
	}
	if row.Raw != nil {
		text := redact.Cut(string(row.Raw))
		if utf8.ValidString(text) {
			answer.Raw = &text
		} else {
			dump := hex.EncodeToString([]byte(text))
			answer.RawHex = &dump
		}
	}
	return writeJSON(out, answer)
}

// maxShown bounds, in bytes, the body on the screen.
const maxShown = 64 << 10

func (q *quarantineShowCommand) showText(out io.Writer, row *store.Quarantined, ledger *store.LedgerEntry) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	j := jsonRow(row)
	id, user, path, remembered := "", "", j.Path, "-"
	if j.Username != nil {
		user = *j.Username
	}
	if j.Origin != "" {
		path += ", by " + j.Origin
	}
	if j.MessageID != nil {
		id = *j.MessageID
	}
	if l := ledgerOf(ledger); l != nil {
		remembered = fmt.Sprintf("%s, by %s, %s", l.Outcome, l.Path, l.CommittedAt.Format(time.RFC3339Nano))
	}
	for _, line := range [][2]string{
		{"ID", fmt.Sprint(row.ID)}, {"ARRIVED", full(row.IngestedAt)}, {"TIME", full(row.EventTS)}, {"TOPIC", row.Topic}, {"TENANT", row.Tenant},
		{"SITE", row.Site}, {"DEVICE", row.Device}, {"TYPE", row.MsgType}, {"REASON", string(row.Reason)}, {"DETAIL", row.Detail},
		{"PATH", path}, {"USER", user}, {"MESSAGE ID", id}, {"LEDGER", remembered},
	} {
		fmt.Fprintf(w, "%s\t%s\n", line[0], dash(printable(line[1])))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if v, ok := redact.JSON(row.Payload, redact.Cut); ok {
		fmt.Fprintf(out, "\nPAYLOAD\n%s\n", printableLines(shown(string(redact.Encode(v, "  ")))))
	}
	if row.Raw == nil {
		return nil
	}
	text := redact.Cut(string(row.Raw))
	fmt.Fprintf(out, "\nRAW, %d bytes%s\n", len(row.Raw), changed(text, row.Raw))
	if utf8.ValidString(text) {
		_, err := fmt.Fprintln(out, printableLines(shown(text)))
		return err
	}
	_, err := fmt.Fprint(out, hex.Dump([]byte(text)[:min(len(text), maxShown)]))
	return err
}

func full(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339Nano)
}

func changed(text string, raw []byte) string {
	if text == string(raw) {
		return ""
	}
	return " (shown without the provision_token)"
}

func shown(s string) string {
	if len(s) <= maxShown {
		return s
	}
	return fmt.Sprintf("%s\n… and %d bytes more: --raw FILE has them all", s[:maxShown], len(s)-maxShown)
}
