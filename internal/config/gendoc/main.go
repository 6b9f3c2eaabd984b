// Command gendoc writes docs/configuration.md from the settings of package
// config. `go generate ./internal/config` runs it; a test of that package fails
// while the file is out of date.
package main

import (
	"flag"
	"fmt"
	"os"

	"github.com/crossfade-io/crossfade/internal/config"
)

func main() {
	out := flag.String("o", "", "file to write; standard output if empty")
	flag.Parse()
	if err := run(*out); err != nil {
		fmt.Fprintln(os.Stderr, "gendoc:", err)
		os.Exit(1)
	}
}

func run(path string) error {
	if path == "" {
		_, err := os.Stdout.WriteString(config.Table())
		return err
	}
	return os.WriteFile(path, []byte(config.Table()), 0o644)
}
