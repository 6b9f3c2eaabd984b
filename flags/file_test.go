package flags_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/flags"
)

func definition(variant string) string {
	return fmt.Sprintf(`{"flags": {"ingest-source": {"state": "ENABLED", "defaultVariant": %q,
		"variants": {"mqtt": "mqtt", "shadow": "shadow", "live": "live", "jetstream": "jetstream", "warp": "warp", "one": 1}}}}`, variant)
}

// put replaces a file as it should be done.
func put(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func fileClient(t *testing.T, path string, change func(*flags.FileOptions)) *flags.Client {
	t.Helper()
	o := flags.DefaultFileOptions()
	o.Path, o.Poll, o.Grace = path, 10*time.Millisecond, 100*time.Millisecond
	if change != nil {
		change(&o)
	}
	p, err := flags.NewFileProvider(o)
	if err != nil {
		t.Fatal(err)
	}
	return clientOf(t, p)
}

func TestFileIsFollowed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "flags.json")
	put(t, path, definition("live"))
	c := fileClient(t, path, nil)
	await(t, c, "a", is(flags.Live))
	put(t, path, definition("shadow"))
	await(t, c, "a", is(flags.Shadow))
	// In place, with the same size and the same time.
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	put(t, path, strings.Replace(definition("live"), "live", "mqtt", 1)+"  ")
	await(t, c, "a", is(flags.MQTT))
	if err := os.WriteFile(path, []byte(definition("shadow")), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, info.ModTime(), info.ModTime()); err != nil {
		t.Fatal(err)
	}
	await(t, c, "a", is(flags.Shadow))
	if err := os.WriteFile(path, []byte(strings.Replace(definition("shadow"), `"defaultVariant": "shadow"`, `"defaultVariant": "mqtt"  `, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, info.ModTime(), info.ModTime()); err != nil {
		t.Fatal(err)
	}
	await(t, c, "a", is(flags.MQTT))
}

// TestFileThroughASymbolicLink, as Kubernetes swaps a ConfigMap.
func TestFileThroughASymbolicLink(t *testing.T) {
	dir := t.TempDir()
	for _, v := range []string{"live", "shadow"} {
		if err := os.Mkdir(filepath.Join(dir, v), 0o700); err != nil {
			t.Fatal(err)
		}
		put(t, filepath.Join(dir, v, "flags.json"), definition(v))
	}
	link := filepath.Join(dir, "current")
	if err := os.Symlink("live", link); err != nil {
		t.Fatal(err)
	}
	c := fileClient(t, filepath.Join(link, "flags.json"), nil)
	await(t, c, "a", is(flags.Live))
	if err := os.Symlink("shadow", link+".new"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(link+".new", link); err != nil {
		t.Fatal(err)
	}
	await(t, c, "a", is(flags.Shadow))
}

// unusable are the ways in which a file cannot be read.
var unusable = map[string]func(t *testing.T, path string){
	"gone": func(t *testing.T, path string) { must(t, os.Remove(path)) },
	"half": func(t *testing.T, path string) {
		must(t, os.WriteFile(path, []byte(definition("jetstream")[:80]), 0o600))
	},
	"empty":     func(t *testing.T, path string) { must(t, os.WriteFile(path, nil, 0o600)) },
	"other":     func(t *testing.T, path string) { put(t, path, `{"flag": "jetstream"}`) },
	"a list":    func(t *testing.T, path string) { put(t, path, `{"flags": [{"key": "ingest-source"}]}`) },
	"too large": func(t *testing.T, path string) { put(t, path, definition("jetstream")+strings.Repeat(" ", 1<<16)) },
	"directory": func(t *testing.T, path string) { must(t, os.Remove(path)); must(t, os.Mkdir(path, 0o700)) },
	"pipe":      func(t *testing.T, path string) { must(t, os.Remove(path)); must(t, syscall.Mkfifo(path, 0o600)) },
}

// TestUnusableFile: it is no answer, it is said once, and it ends when it is mended.
func TestUnusableFile(t *testing.T) {
	for name, breakIt := range unusable {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "flags.json")
			put(t, path, definition("live"))
			log, logged := newLog()
			c := fileClient(t, path, func(o *flags.FileOptions) { o.Logger, o.MaxBytes = log, 4096 })
			await(t, c, "a", is(flags.Live))
			breakIt(t, path)
			for range 1000 { // the last good content, or no answer: nothing else ever
				if v, err := c.Desired(t.Context(), "a"); !is(flags.Live)(v, err) && (v != "" || err == nil) {
					t.Fatalf("%q, %v", v, err)
				}
			}
			await(t, c, "a", fails(flags.CauseStale))
			if err := c.Health(); err == nil || !strings.Contains(err.Error(), "flags.json") {
				t.Errorf("health: %v", err)
			}
			logged.await(t, "mend the file")
			must(t, os.RemoveAll(path))
			put(t, path, definition("shadow"))
			await(t, c, "a", is(flags.Shadow))
			logged.mu.Lock()
			defer logged.mu.Unlock()
			// Between the removal and the new file there may have been another reading.
			if n := strings.Count(logged.text.String(), "mend the file"); n > 2 {
				t.Errorf("said %d times", n)
			}
		})
	}
}

// TestLastGoodContentHoldsForItsGrace: who writes in place leaves a moment in which
// there is half a file.
func TestLastGoodContentHoldsForItsGrace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "flags.json")
	put(t, path, definition("live"))
	log, logged := newLog()
	c := fileClient(t, path, func(o *flags.FileOptions) { o.Logger, o.Grace = log, time.Hour })
	await(t, c, "a", is(flags.Live))
	unusable["half"](t, path)
	logged.await(t, "unusable")
	if v, err := c.Desired(t.Context(), "a"); !is(flags.Live)(v, err) {
		t.Errorf("%q, %v", v, err)
	}
}

func TestFileThatIsNotThereAtTheStart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "flags.json")
	c := fileClient(t, path, nil)
	if v, err := c.Desired(t.Context(), "a"); !fails(flags.CauseNotReady)(v, err) {
		t.Fatalf("%q, %v", v, err)
	}
	put(t, path, definition("live"))
	await(t, c, "a", is(flags.Live))
}

// TestFileThatLies: it can be read, and what it says of the flag is no answer.
func TestFileThatLies(t *testing.T) {
	path := filepath.Join(t.TempDir(), "flags.json")
	put(t, path, definition("live"))
	c := fileClient(t, path, nil)
	for name, lie := range map[string]struct {
		content string
		want    flags.Cause
	}{
		"no such flag":    {`{"flags": {"other": {"state": "ENABLED", "variants": {"live": "live"}, "defaultVariant": "live"}}}`, flags.CauseError},
		"disabled":        {strings.Replace(definition("live"), "ENABLED", "DISABLED", 1), flags.CauseError},
		"state unknown":   {strings.Replace(definition("live"), "ENABLED", "enabled", 1), flags.CauseError},
		"unknown variant": {definition("warp"), flags.CauseVariant},
		"number":          {definition("one"), flags.CauseError},
		"no default":      {`{"flags": {"ingest-source": {"state": "ENABLED", "variants": {"live": "live"}, "defaultVariant": null}}}`, flags.CauseError},
		"default unknown": {definition("fast"), flags.CauseError},
		"no variants":     {`{"flags": {"ingest-source": {"state": "ENABLED", "defaultVariant": "live"}}}`, flags.CauseError},
		"capital names":   {`{"flags": {"ingest-source": {"State": "ENABLED", "Variants": {"live": "live"}, "DefaultVariant": "live"}}}`, flags.CauseError},
		"bad rule":        {`{"flags": {"ingest-source": {"state": "ENABLED", "variants": {"live": "live"}, "defaultVariant": "live", "targeting": {"fractional": [["live", 0.5]]}}}}`, flags.CauseError},
		"no object":       {`{"flags": {"ingest-source": "live"}}`, flags.CauseError},
	} {
		put(t, path, definition("live"))
		await(t, c, "a", is(flags.Live))
		put(t, path, lie.content)
		await(t, c, "a", fails(lie.want))
		t.Log(name)
	}
}

// TestFileFlaps: good and bad contents in turn; only what a good one said is ever heard.
func TestFileFlaps(t *testing.T) {
	path := filepath.Join(t.TempDir(), "flags.json")
	put(t, path, definition("live"))
	c := fileClient(t, path, nil)
	for i := range 10 {
		want := []flags.Variant{flags.Live, flags.Shadow}[i%2]
		put(t, path, definition(string(want)))
		await(t, c, "a", is(want))
		must(t, os.WriteFile(path, []byte(definition("jetstream")[:60]), 0o600))
		for range 20 {
			if v, err := c.Desired(t.Context(), "a"); !is(want)(v, err) && (v != "" || err == nil) {
				t.Fatalf("%q, %v", v, err)
			}
		}
	}
}

func TestFileConcurrency(t *testing.T) {
	path := filepath.Join(t.TempDir(), "flags.json")
	rule := `{"flags": {"ingest-source": {"state": "ENABLED", "defaultVariant": "mqtt", "variants": {"mqtt": "mqtt", "live": "live"},
		"targeting": {"if": [{"$ref": "x"}, {"fractional": [["live", %d], ["mqtt", 1]]}, "mqtt"]}}}, "$evaluators": {"x": {"starts_with": [{"var": "targetingKey"}, "t"]}}}`
	put(t, path, fmt.Sprintf(rule, 1))
	c := fileClient(t, path, func(o *flags.FileOptions) { o.Grace = time.Hour })
	await(t, c, "a", is(flags.MQTT))
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for i := range 500 {
				if _, err := c.Desired(t.Context(), fmt.Sprint("t", i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range 20 {
		put(t, path, fmt.Sprintf(rule, i+2))
	}
	all.Wait()
	c.EvaluateAll(t.Context(), make10k(), func(tenant string, a flags.Answer, err error) {
		if err != nil {
			t.Errorf("%s: %+v, %v", tenant, a, err)
		}
	})
}
