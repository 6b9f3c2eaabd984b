package check_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// TestAddingACheckIsTrue: the diff that docs/adding-a-check.md shows is the code. It
// adds one file, and one line to another.
func TestAddingACheckIsTrue(t *testing.T) {
	page, err := os.ReadFile("../../docs/adding-a-check.md")
	if err != nil {
		t.Fatal(err)
	}
	_, diff, found := strings.Cut(string(page), "```diff\n")
	diff, _, ended := strings.Cut(diff, "```")
	if !found || !ended {
		t.Fatal("the page shows no diff")
	}
	var names []string
	var added []int
	for _, file := range strings.Split(diff, "diff --git a/")[1:] {
		name, _, _ := strings.Cut(file, " ")
		_, hunk, _ := strings.Cut(file, "\n@@ ")
		place, hunk, _ := strings.Cut(hunk, "\n")
		var after strings.Builder
		n := 0
		for line := range strings.Lines(hunk) {
			switch line[0] {
			case '+':
				n++
			case ' ', '\n':
			default:
				t.Errorf("%s: the diff does more than add: %s", name, line)
			}
			after.WriteString(strings.TrimPrefix(strings.TrimPrefix(line, "+"), " "))
		}
		code, err := os.ReadFile("../../" + name)
		if err != nil {
			t.Fatal(err)
		}
		isNew := strings.Contains(file, "--- /dev/null")
		if isNew && string(code) != after.String() || !strings.Contains(string(code), after.String()) {
			t.Errorf("%s is not what the page shows; it should show\n%s", name, code)
		}
		// As git apply, or patch, needs it to put the lines where they belong.
		lines := strings.Count(after.String(), "\n")
		first, before := 1+strings.Count(strings.Split(string(code), after.String())[0], "\n"), "-0,0"
		if !isNew {
			before = fmt.Sprintf("-%d,%d", first, lines-n)
		}
		if want := fmt.Sprintf("%s +%d,%d @@", before, first, lines); !strings.HasPrefix(place, want) {
			t.Errorf("%s: the lines are at @@ %s, want @@ %s", name, place, want)
		}
		names, added = append(names, name), append(added, n)
	}
	if !slices.Equal(names, []string{"pipeline/check/subscription.go", "pipeline/check/check.go"}) || added[1] != 1 {
		t.Errorf("the page adds %v lines to %v, want one new file and one line", added, names)
	}
}
