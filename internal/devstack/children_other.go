//go:build !linux

package devstack

// childrenOf knows no children outside Linux: sessions of a killed PostgreSQL
// then end by themselves when they notice.
func childrenOf(int) []int { return nil }
