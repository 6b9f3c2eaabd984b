package config

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"strings"

	"github.com/alecthomas/kong"
)

// maxSecretBytes bounds what is read from a file that should hold one secret, so
// that a wrong path (a device, a log) cannot fill the memory.
const maxSecretBytes = 64 << 10

const redacted = "[redacted]"

// Secret is a value that must not be seen. However it is printed, logged or
// marshalled it reads "[redacted]", or nothing where it is empty; only Reveal
// returns it.
type Secret string

// Reveal returns the secret itself, for the one place that needs it.
func (s Secret) Reveal() string { return string(s) }

// String returns "[redacted]", or "" for an empty secret.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return redacted
}

// Format redacts for every verb, %x and %#v included.
func (s Secret) Format(f fmt.State, verb rune) { formatRedacted(f, verb, s.String()) }

// LogValue redacts for slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText redacts for JSON, YAML and whatever else knows encoding.TextMarshaler.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Decode takes the value from kong. It exists because kong's own error for a
// value that looks like a flag repeats the value.
func (s *Secret) Decode(ctx *kong.DecodeContext) error {
	token, err := ctx.Scan.PopValue("secret")
	if err != nil {
		return errors.New("needs a value; one that begins with - is given as --flag=value")
	}
	text, ok := token.Value.(string)
	if !ok {
		return errors.New("must be text")
	}
	*s = Secret(text)
	return nil
}

// Endpoint is the URL of a server. Printed, logged or marshalled it shows no
// user information: a password in it is refused by Validate, and must not be
// repeated on the way. string(e) is the URL itself.
type Endpoint string

// String returns the URL without the password in it, if there is one, and
// "[redacted]" for something that holds an @ but is no URL.
func (e Endpoint) String() string {
	if !strings.Contains(string(e), "@") {
		return string(e)
	}
	u, err := url.Parse(string(e))
	if err != nil || u.User == nil {
		return redacted
	}
	// User info without a colon is a token for NATS: as secret as a password.
	u.User = url.User("redacted")
	return u.String()
}

// Format redacts for every verb.
func (e Endpoint) Format(f fmt.State, verb rune) { formatRedacted(f, verb, e.String()) }

// LogValue redacts for slog.
func (e Endpoint) LogValue() slog.Value { return slog.StringValue(e.String()) }

// MarshalText redacts for JSON, YAML and whatever else knows encoding.TextMarshaler.
func (e Endpoint) MarshalText() ([]byte, error) { return []byte(e.String()), nil }

func formatRedacted(f fmt.State, verb rune, text string) {
	if verb == 'q' || f.Flag('#') {
		text = fmt.Sprintf("%q", text)
	}
	// A failing writer is the printing caller's to notice.
	_, _ = io.WriteString(f, text)
}

// secretOrFile returns the content of the file where one is named, else the
// value. flag names the setting in errors.
func secretOrFile(value Secret, path, flag string) (Secret, error) {
	if path == "" {
		return value, nil
	}
	content, err := readSecret(path)
	if err != nil {
		return "", fmt.Errorf("read the secret of --%s: %w", flag, err)
	}
	return content, nil
}

// readSecret reads a file that holds one secret and cuts one newline at its end.
// Errors name the path and never the content.
func readSecret(path string) (Secret, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, maxSecretBytes+1))
	if err != nil {
		return "", err
	}
	if len(content) > maxSecretBytes {
		return "", fmt.Errorf("%s is larger than %d KiB and can hardly be a secret", path, maxSecretBytes>>10)
	}
	text := strings.TrimSuffix(strings.TrimSuffix(string(content), "\n"), "\r")
	if text == "" {
		return "", fmt.Errorf("%s is empty", path)
	}
	return Secret(text), nil
}

// ConnString returns the connection string for pgx, from URLFile where that is
// set. An empty one means that the libpq variables (PGHOST and so on) decide.
func (d Database) ConnString() (Secret, error) {
	return secretOrFile(d.URL, d.URLFile, "database-url-file")
}
