package options

import (
	"errors"
	"io"
	"testing"
)

func TestEveryProblemIsSaid(t *testing.T) {
	of := Invalid{Of: "bench"}
	of.Need(true, "Runs", "is %d", 3)
	if err := of.Err(); err != nil {
		t.Errorf("nothing is wrong, and yet: %v", err)
	}
	of.Need(false, "Messages", "is %d: choose 1 to 6", 7)
	of.Need(false, "BatchSize", "is 0: choose 1")
	if got, want := of.Err().Error(), "bench option Messages is 7: choose 1 to 6\nbench option BatchSize is 0: choose 1"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := Flags(of.Err()).Error(), "--messages is 7: choose 1 to 6\n--batch-size is 0: choose 1"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if err := Flags(nil); err != nil {
		t.Errorf("flags of no error: %v", err)
	}
	if err := Flags(io.EOF); !errors.Is(err, io.EOF) {
		t.Errorf("another error became %v", err)
	}
}
