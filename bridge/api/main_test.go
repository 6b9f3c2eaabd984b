package api

import (
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/migrations"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(devstack.Main(allTests{m})) }

// allTests ends what belongs to all tests together.
type allTests struct{ m *testing.M }

func (a allTests) Run() int {
	code := a.m.Run()
	shared.end()
	return code
}

// sharedDatabase is migrated once, and emptied for every test: migrating takes longer
// than most tests. It is a devstack.TB that lives as long as all tests.
type sharedDatabase struct {
	once     sync.Once
	url      string
	cleanups []func()
}

var shared sharedDatabase

func (s *sharedDatabase) open(t testing.TB) string {
	t.Helper()
	s.once.Do(func() {
		url := devstack.TestOwnedDatabase(s)
		if _, err := migrations.Apply(t.Context(), url, nil); err != nil {
			t.Fatal(err)
		}
		s.url = url
	})
	if s.url == "" {
		t.Fatal("there is no database")
	}
	return s.url
}

func (s *sharedDatabase) end() {
	for _, f := range slices.Backward(s.cleanups) {
		f()
	}
}

func (s *sharedDatabase) Helper()          {}
func (s *sharedDatabase) Cleanup(f func()) { s.cleanups = append(s.cleanups, f) }
func (s *sharedDatabase) Failed() bool     { return false }
func (s *sharedDatabase) Fatalf(format string, args ...any) {
	panic(fmt.Sprintf(format, args...))
}

func (s *sharedDatabase) Errorf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
}
func (s *sharedDatabase) Logf(string, ...any) {}
