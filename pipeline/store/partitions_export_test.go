package store

// IndexYoungFrom sets the size, in bytes, from which an expiring ledger
// partition is indexed before it is dropped.
func (p *Partitions) IndexYoungFrom(bytes int64) { p.indexFrom = bytes }
