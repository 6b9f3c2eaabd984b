package main

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/crossfade-io/crossfade/internal/bench"
)

// TestBenchExitCodes: a run that did not store everything once is a no, with the
// reason told.
func TestBenchExitCodes(t *testing.T) {
	for _, c := range []struct {
		err  error
		code int
	}{
		{fmt.Errorf("run 1: %w: 1 lost", bench.ErrNotReconciled), exitNo},
		{errors.New("run 1: no PostgreSQL"), exitError},
	} {
		var errs bytes.Buffer
		if code := exitCode(benchError(c.err), &errs); code != c.code || !strings.Contains(errs.String(), c.err.Error()) {
			t.Errorf("%v: exit code %d, want %d; %s", c.err, code, c.code, &errs)
		}
	}
}

func TestBenchRefusesBadFlags(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"--messages 999", "--messages is 999: choose 1000 to 2000000"},
		{"--messages 2000001", "--messages is 2000001"},
		{"--runs 0", "--runs is 0: choose 1 to 100"},
		{"--devices 19", "--devices is 19: choose 20 to 100000"},
		{"--batch-size 10001 --workers 65", "--batch-size is 10001: choose 1 to 10000\n--workers is 65: choose 1 to 64"},
		{"--output xml", "--output must be one of"},
	} {
		var out, errs bytes.Buffer
		if code := run(t.Context(), append([]string{"bench"}, strings.Fields(c.args)...), &out, &errs); code != exitUsage || !strings.Contains(errs.String(), c.want) {
			t.Errorf("bench %s: exit code %d, %s", c.args, code, &errs)
		}
	}
}
