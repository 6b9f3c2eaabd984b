package bench

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"

	"github.com/crossfade-io/crossfade/internal/fleet"
)

// Measure is one measurement, or the median of several.
type Measure struct {
	Seconds float64    `json:"seconds"`
	Rate    float64    `json:"messages_per_second"`
	CPU     CPUSeconds `json:"cpu_seconds"` // during those Seconds
	// The rest is the instance's only.
	P50       float64 `json:"latency_p50_seconds,omitempty"` // from the hand-over by the source to the commit
	P99       float64 `json:"latency_p99_seconds,omitempty"`
	PeakBytes int64   `json:"peak_memory_bytes,omitempty"`
}

// CPUSeconds is the CPU time of the processes at work. Crossfade stands for
// the instance, and with the ceilings for the benchmark, which then is the client.
type CPUSeconds struct {
	Crossfade float64 `json:"crossfade"`
	Postgres  float64 `json:"postgresql"`
	NATS      float64 `json:"nats"`
}

// Round is what one run measured. Its report is of the instance's database.
type Round struct {
	Pipeline Measure      `json:"crossfade_run"`
	Copy     Measure      `json:"bare_copy"`
	Pull     Measure      `json:"pull_and_ack"`
	Report   fleet.Report `json:"reconciled"`
}

// Result is the answer. The ratios are medians of each run's own, so that a
// machine that is slower for a while does not bend them.
type Result struct {
	Messages  int `json:"messages"`
	Devices   int `json:"devices"`
	BatchSize int `json:"batch_size"`
	Workers   int `json:"workers"`

	ToCopy float64 `json:"ratio_to_copy"`
	ToPull float64 `json:"ratio_to_pull"`
	Median Round   `json:"median"`

	Rounds []Round `json:"runs"`
}

func (r *Result) summarize() {
	measure := func(which func(*Round) *Measure) Measure {
		pick := func(value func(*Measure) float64) float64 {
			return medianOf(r.Rounds, func(b *Round) float64 { return value(which(b)) })
		}
		return Measure{
			Seconds: pick(func(m *Measure) float64 { return m.Seconds }),
			Rate:    pick(func(m *Measure) float64 { return m.Rate }),
			CPU: CPUSeconds{
				Crossfade: pick(func(m *Measure) float64 { return m.CPU.Crossfade }),
				Postgres:  pick(func(m *Measure) float64 { return m.CPU.Postgres }),
				NATS:      pick(func(m *Measure) float64 { return m.CPU.NATS }),
			},
			P50:       pick(func(m *Measure) float64 { return m.P50 }),
			P99:       pick(func(m *Measure) float64 { return m.P99 }),
			PeakBytes: int64(pick(func(m *Measure) float64 { return float64(m.PeakBytes) })),
		}
	}
	r.Median = Round{
		Pipeline: measure(func(b *Round) *Measure { return &b.Pipeline }),
		Copy:     measure(func(b *Round) *Measure { return &b.Copy }),
		Pull:     measure(func(b *Round) *Measure { return &b.Pull }),
		Report:   r.Rounds[len(r.Rounds)-1].Report,
	}
	r.ToCopy = medianOf(r.Rounds, func(b *Round) float64 { return b.Pipeline.Rate / b.Copy.Rate })
	r.ToPull = medianOf(r.Rounds, func(b *Round) float64 { return b.Pipeline.Rate / b.Pull.Rate })
}

// medianOf returns the median of a value, of an even number the mean of the
// middle two; 0 of nothing.
func medianOf[T any](list []T, value func(*T) float64) float64 {
	if len(list) == 0 {
		return 0
	}
	values := make([]float64, len(list))
	for i := range list {
		values[i] = value(&list[i])
	}
	slices.SortFunc(values, cmp.Compare[float64])
	middle := len(values) / 2
	if len(values)%2 == 1 {
		return values[middle]
	}
	return (values[middle-1] + values[middle]) / 2
}

// WriteJSON writes one indented object.
func (r *Result) WriteJSON(out io.Writer) error {
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

// WriteText says it for people.
func (r *Result) WriteText(w io.Writer) error {
	fmt.Fprintf(w, "A JetStream backlog of %d messages from %d devices to PostgreSQL, batches of %d, %d workers; median of %d\n\n",
		r.Messages, r.Devices, r.BatchSize, r.Workers, len(r.Rounds))
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "\tmsg/s\tratio\tCPU µs/msg: client\tPostgreSQL\tNATS\t")
	for _, line := range []struct {
		name  string
		ratio float64
		m     Measure
	}{
		{"crossfade run", 1, r.Median.Pipeline},
		{"bare COPY of the same rows", r.ToCopy, r.Median.Copy},
		{"pull and ack, no database", r.ToPull, r.Median.Pull},
	} {
		micros := func(seconds float64) string {
			if seconds == 0 {
				return "–"
			}
			return fmt.Sprintf("%.1f", seconds*1e6/float64(r.Messages))
		}
		fmt.Fprintf(t, "%s\t%.0f\t%.2f\t%s\t%s\t%s\t\n", line.name, line.m.Rate, line.ratio,
			micros(line.m.CPU.Crossfade), micros(line.m.CPU.Postgres), micros(line.m.CPU.NATS))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	p := r.Median.Pipeline
	fmt.Fprintf(w, "\nlatency from hand-over by the source to commit: p50 %.0f ms, p99 %.0f ms\n", p.P50*1000, p.P99*1000)
	fmt.Fprintf(w, "peak memory of the instance: %.0f MiB\n", float64(p.PeakBytes)/(1<<20))
	_, err := fmt.Fprintf(w, "reconciled after each of %d: stored %d  lost %d  duplicated %d\n",
		len(r.Rounds), r.Median.Report.Stored, r.Median.Report.Lost, r.Median.Report.Duplicated)
	return err
}
