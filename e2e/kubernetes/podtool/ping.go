package main

import (
	"encoding/binary"
	"encoding/json"
	"flag"
	"net"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

// report is what a ping prints at its end. Gap is the longest time between two answers, by when their questions were sent.
type report struct {
	Sent       uint64  `json:"sent"`
	Received   uint64  `json:"received"`
	GapMillis  float64 `json:"gapMillis"`
	BestMillis float64 `json:"bestMillis"`
}

// pinger counts answers while another goroutine asks.
type pinger struct {
	mutex sync.Mutex
	start time.Time
	last  time.Duration
	report
}

func ping(arguments []string) error {
	flags := flag.NewFlagSet("ping", flag.ExitOnError)
	count := flags.Uint64("n", 1<<62, "how many")
	every := flags.Int("i", 10, "milliseconds between two")
	_ = flags.Parse(arguments)
	socket, err := net.Dial("udp", flags.Arg(0))
	if err != nil {
		return err
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
	state := &pinger{start: time.Now()}
	go state.listen(socket)
	tick := time.NewTicker(time.Duration(*every) * time.Millisecond)
	for asking := true; asking && state.ask(socket) < *count; {
		select {
		case <-stop:
			asking = false
		case <-tick.C:
		}
	}
	time.Sleep(time.Second) // the last answers are on their way
	state.mutex.Lock()
	defer state.mutex.Unlock()
	return json.NewEncoder(os.Stdout).Encode(state.report)
}

// ask sends the time since the start, and returns how many questions there have been.
func (p *pinger) ask(socket net.Conn) uint64 {
	var question [8]byte
	binary.BigEndian.PutUint64(question[:], uint64(time.Since(p.start)))
	_, _ = socket.Write(question[:]) // no route at the moment is a loss like any other
	p.mutex.Lock()
	defer p.mutex.Unlock()
	p.Sent++
	return p.Sent
}

func (p *pinger) listen(socket net.Conn) {
	buffer := make([]byte, 2048)
	for {
		length, err := socket.Read(buffer)
		if err != nil || length < 8 {
			continue
		}
		p.count(time.Duration(binary.BigEndian.Uint64(buffer)), time.Since(p.start))
	}
}

func (p *pinger) count(asked, now time.Duration) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	millis := func(time time.Duration) float64 { return float64(time.Microseconds()) / 1000 }
	p.Received++
	p.GapMillis = max(p.GapMillis, millis(asked-p.last))
	p.last = max(p.last, asked)
	if took := millis(now - asked); p.BestMillis == 0 || took < p.BestMillis {
		p.BestMillis = took
	}
}
