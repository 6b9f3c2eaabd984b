//go:build race

package control

// The race detector makes everything several times slower.
func init() { multitude = 1000 }
