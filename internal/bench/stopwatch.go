package bench

import "time"

// stopwatch takes the time and the CPU time of the processes at work.
type stopwatch struct {
	began time.Time
	pids  [3]int
	cpu   [3]time.Duration
}

// startStopwatch starts now. A PID of 0 is of nobody.
func startStopwatch(crossfade, postgres, nats int) (*stopwatch, error) {
	c := &stopwatch{pids: [3]int{crossfade, postgres, nats}}
	var err error
	if c.cpu, err = cpuOf(c.pids); err != nil {
		return nil, err
	}
	c.began = time.Now()
	return c, nil
}

// stop says what so many messages took since the start.
func (c *stopwatch) stop(messages int) (Measure, error) {
	seconds := time.Since(c.began).Seconds()
	cpu, err := cpuOf(c.pids)
	if err != nil {
		return Measure{}, err
	}
	return Measure{
		Seconds: seconds, Rate: float64(messages) / seconds,
		CPU: CPUSeconds{(cpu[0] - c.cpu[0]).Seconds(), (cpu[1] - c.cpu[1]).Seconds(), (cpu[2] - c.cpu[2]).Seconds()},
	}, nil
}
