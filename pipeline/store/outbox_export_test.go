package store

import "context"

// Setting is a setting of the session that holds the lanes.
func (l *Lanes) Setting(ctx context.Context, name string) (value string, err error) {
	err = l.hold.Conn().QueryRow(ctx, "SELECT current_setting($1)", name).Scan(&value)
	return value, err
}
