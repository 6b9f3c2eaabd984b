//go:build race

package demo

func init() { buildFlags = []string{"-race"} }
