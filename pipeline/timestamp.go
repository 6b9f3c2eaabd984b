package pipeline

import "time"

// ParseTimestamp reads the forms of ISO 8601 that devices in the field send:
// RFC 3339, a space in place of the T, the basic form without separators, a bare
// date. Fractions are cut after microseconds, a missing zone is UTC, years are
// 1 to 9999. It is false for anything else.
func ParseTimestamp(s string) (time.Time, bool) {
	p := timeParser{s: s}
	year := p.digits(4)
	extended := p.take('-')
	month := p.digits(2)
	if extended && !p.take('-') {
		return time.Time{}, false
	}
	day := p.digits(2)
	if p.failed || year < 1 || month < 1 || month > 12 || day < 1 || day > daysIn(year, month) {
		return time.Time{}, false
	}
	if p.s == "" {
		return time.Date(year, time.Month(month), day, 0, 0, 0, 0, time.UTC), true
	}
	if !p.take('T') && !p.take('t') && !p.take(' ') {
		return time.Time{}, false
	}
	hour, minute, second, micros := p.clock()
	offset := p.zone()
	if p.failed || p.s != "" || hour > 23 || minute > 59 || second > 59 {
		return time.Time{}, false
	}
	t := time.Date(year, time.Month(month), day, hour, minute, second, micros*1000, time.UTC)
	t = t.Add(-time.Duration(offset) * time.Minute)
	if y := t.Year(); y < 1 || y > 9999 {
		return time.Time{}, false
	}
	return t, true
}

func daysIn(year, month int) int {
	return time.Date(year, time.Month(month)+1, 0, 0, 0, 0, 0, time.UTC).Day()
}

// timeParser consumes s from the left; failed stays set once something is amiss.
type timeParser struct {
	s      string
	failed bool
}

func (p *timeParser) take(c byte) bool {
	if p.s == "" || p.s[0] != c {
		return false
	}
	p.s = p.s[1:]
	return true
}

func (p *timeParser) digits(n int) int {
	if len(p.s) < n {
		p.failed = true
		return 0
	}
	v := 0
	for i := range n {
		c := p.s[i]
		if c < '0' || c > '9' {
			p.failed = true
			return 0
		}
		v = v*10 + int(c-'0')
	}
	p.s = p.s[n:]
	return v
}

func (p *timeParser) nextIsDigit() bool {
	return p.s != "" && p.s[0] >= '0' && p.s[0] <= '9'
}

func (p *timeParser) clock() (hour, minute, second, micros int) {
	hour = p.digits(2)
	if p.take(':') || p.nextIsDigit() {
		minute = p.digits(2)
		if p.take(':') || p.nextIsDigit() {
			second = p.digits(2)
			if p.take('.') || p.take(',') {
				micros = p.fraction()
			}
		}
	}
	return hour, minute, second, micros
}

func (p *timeParser) fraction() int {
	if !p.nextIsDigit() {
		p.failed = true
		return 0
	}
	v, scale := 0, 100_000
	for p.nextIsDigit() {
		v += int(p.s[0]-'0') * scale
		scale /= 10
		p.s = p.s[1:]
	}
	return v
}

// zone returns the offset from UTC in minutes.
func (p *timeParser) zone() int {
	p.take(' ')
	if p.s == "" || p.take('Z') || p.take('z') {
		return 0
	}
	sign := 1
	switch {
	case p.take('+'):
	case p.take('-'):
		sign = -1
	default:
		p.failed = true
		return 0
	}
	hours := p.digits(2)
	minutes := 0
	if p.take(':') || p.nextIsDigit() {
		minutes = p.digits(2)
	}
	if hours > 23 || minutes > 59 {
		p.failed = true
	}
	return sign * (hours*60 + minutes)
}
