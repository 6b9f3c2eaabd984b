// Package options says which options of a run cannot be used, and what to choose
// instead, so that a command can name its own flags for them.
package options

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
)

// Invalid is the error of options that cannot be used.
type Invalid struct {
	// Of is whose options they are: "demo".
	Of string
	// Fields are all that cannot be used, at least one.
	Fields []Field
}

// Field is one that cannot be used.
type Field struct {
	Name string
	// Problem is its value and the remedy: "is 7: choose 1 to 6".
	Problem string
}

func (i *Invalid) Error() string {
	lines := make([]string, len(i.Fields))
	for n, f := range i.Fields {
		lines[n] = i.Of + " option " + f.Name + " " + f.Problem
	}
	return strings.Join(lines, "\n")
}

// Need notes a problem of the field unless ok.
func (i *Invalid) Need(ok bool, field, format string, args ...any) {
	if !ok {
		i.Fields = append(i.Fields, Field{field, fmt.Sprintf(format, args...)})
	}
}

// Err is nil where no problem was noted.
func (i *Invalid) Err() error {
	if len(i.Fields) == 0 {
		return nil
	}
	return i
}

// Flags says an [Invalid] in terms of the flags that kong makes of the fields:
// BatchSize is --batch-size. Any other error it returns as it is.
func Flags(err error) error {
	var invalid *Invalid
	if !errors.As(err, &invalid) {
		return err
	}
	var errs []error
	for _, f := range invalid.Fields {
		errs = append(errs, fmt.Errorf("%s %s", flag(f.Name), f.Problem))
	}
	return errors.Join(errs...)
}

func flag(field string) string {
	name := []byte("-")
	for _, r := range field {
		if unicode.IsUpper(r) {
			name = append(name, '-')
		}
		name = append(name, string(unicode.ToLower(r))...)
	}
	return string(name)
}
