package demo

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"github.com/crossfade-io/crossfade/internal/devstack"
)

// crossfade is the path of the program, built for these tests, with the race
// detector where they have it.
var crossfade string

var buildFlags []string

func TestMain(m *testing.M) { goleak.VerifyTestMain(withCrossfade{devstack.Main(m)}) }

type withCrossfade struct{ tests interface{ Run() int } }

func (w withCrossfade) Run() int {
	dir, err := os.MkdirTemp("", "demo-program-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	crossfade = filepath.Join(dir, "crossfade")
	args := append([]string{"build", "-o", crossfade}, buildFlags...)
	if out, err := exec.Command("go", append(args, "github.com/crossfade-io/crossfade/cmd/crossfade")...).CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build crossfade for the tests: %v\n%s", err, out)
		return 1
	}
	return w.tests.Run()
}
