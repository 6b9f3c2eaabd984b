package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/crossfade-io/crossfade/internal/fleet"
	"github.com/crossfade-io/crossfade/pipeline"
)

// Report is the outcome, and the verdict.
type Report struct {
	// OK: what devices sent is in the database, each message once, and nothing else.
	OK          bool    `json:"ok"`
	Sent        int64   `json:"sent"`
	Stored      int64   `json:"stored"`
	Lost        int64   `json:"lost"`
	Duplicated  int64   `json:"duplicated"`
	Interrupted bool    `json:"interrupted"`
	Seconds     float64 `json:"seconds"` // that devices were publishing
	Tenants     int     `json:"tenants"`
	Devices     int     `json:"devices"`
	// Effective counts messages by the path whose copy took effect, from the ledger.
	Effective map[string]int64 `json:"effective"`
	Flips     []Flip           `json:"flips"`
	Kills     int              `json:"kills"`
	// Observed is what crossfade run counted; what a killed process counted last is
	// missing from it.
	Observed       Counts       `json:"observed"`
	Reconciliation fleet.Report `json:"reconciliation"`
}

func (r *Report) judge(f fleet.Report) {
	r.Reconciliation = f
	r.Sent, r.Stored, r.Lost, r.Duplicated = f.Sent, f.Stored, f.Lost, f.Duplicated
	r.OK = f.OK() && f.Sent > 0
}

// effective asks the ledger which path's copy of each message took effect.
func effective(ctx context.Context, pool *pgxpool.Pool) (map[string]int64, error) {
	counts := map[string]int64{pipeline.PathMQTT.String(): 0, pipeline.PathJetStream.String(): 0}
	rows, err := pool.Query(ctx, `SELECT path, count(*) FROM crossfade_ledger GROUP BY path`)
	if err != nil {
		return nil, fmt.Errorf("read crossfade_ledger: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var path int16
		var n int64
		if err := rows.Scan(&path, &n); err != nil {
			return nil, fmt.Errorf("read crossfade_ledger: %w", err)
		}
		counts[pipeline.Path(path).String()] = n
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read crossfade_ledger: %w", err)
	}
	return counts, nil
}

// WriteJSON writes one indented object.
func (r *Report) WriteJSON(out io.Writer) error {
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

// WriteText says it for people. It ends with the line that counts.
func (r *Report) WriteText(screen *Screen) {
	f := r.Reconciliation
	screen.say("\n%s", screen.bold("What the devices' own record says was sent, against what the database holds:"))
	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\ttenant\tsent\tstored\tlost\tduplicated\t")
	names := slices.Sorted(maps.Keys(f.Tenants))
	for _, name := range names[:min(10, len(names))] {
		t := f.Tenants[name]
		fmt.Fprintf(w, "\t%s\t%d\t%d\t%d\t%d\t\n", name, t.Sent, t.Stored, t.Lost, t.Duplicated)
	}
	_ = w.Flush() // into memory
	screen.say("%s", strings.TrimRight(table.String(), "\n"))
	if more := len(names) - 10; more > 0 {
		screen.say("  and %d more tenants", more)
	}
	screen.say("By the ledger, MQTT's copy took effect for %d messages and JetStream's for %d\n(reports of device state included); the other copy of each changed nothing.",
		r.Effective["mqtt"], r.Effective["jetstream"])
	if r.Kills > 0 {
		screen.say("crossfade run was killed %d times.", r.Kills)
	}
	if f.Uncertain > 0 {
		screen.say("%d messages were sent without the broker's answer, so they may be stored or not: %d are.", f.Uncertain, f.UncertainStored)
	}
	if !r.OK {
		r.writeTrouble(screen)
	}
	verdict, paint := "OK  ", screen.good
	if !r.OK {
		verdict, paint = "FAILED  ", screen.bad
	}
	screen.say("\n%ssent %d  stored %d  %s", paint(verdict), r.Sent, r.Stored, paint(fmt.Sprintf("lost %d  duplicated %d", r.Lost, r.Duplicated)))
}

func (r *Report) writeTrouble(screen *Screen) {
	f := r.Reconciliation
	if f.Sent == 0 {
		screen.say("Nothing was sent, so nothing is proved.")
	}
	if f.Unexpected > 0 {
		screen.say("%d rows are there that no device has sent.", f.Unexpected)
	}
	if f.ShadowBehind > 0 {
		screen.say("The state of %d devices is not what they reported last.", f.ShadowBehind)
	}
	for _, example := range f.Examples {
		screen.say("  %s", example)
	}
}
