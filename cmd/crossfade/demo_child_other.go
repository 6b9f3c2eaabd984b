//go:build !linux

package main

import "os"

func demoExecutable() (string, error) { return os.Executable() }
