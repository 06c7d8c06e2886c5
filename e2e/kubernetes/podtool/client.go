package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

const (
	retryDelay    = 300 * time.Millisecond
	accountFolder = "/var/run/secrets/kubernetes.io/serviceaccount/"
)

// attempts are the flags of what is tried more than once.
type attempts struct {
	flags   *flag.FlagSet
	seconds *float64
	tries   *int
}

func newAttempts(name string) attempts {
	flags := flag.NewFlagSet(name, flag.ExitOnError)
	return attempts{flags, flags.Float64("t", 5, "seconds for each try"), flags.Int("n", 1, "tries")}
}

func (a attempts) timeout() time.Duration {
	return time.Duration(*a.seconds * float64(time.Second))
}

func (a attempts) try(work func() error) error {
	err := work()
	for left := *a.tries - 1; err != nil && left > 0; left-- {
		time.Sleep(retryDelay)
		err = work()
	}
	return err
}

func get(arguments []string) error {
	how := newAttempts("get")
	insecure := how.flags.Bool("k", false, "accept any certificate")
	_ = how.flags.Parse(arguments)
	transport := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: *insecure}}
	client := &http.Client{Timeout: how.timeout(), Transport: transport}
	request, err := http.NewRequest(http.MethodGet, how.flags.Arg(0), nil)
	if err != nil {
		return err
	}
	return how.try(func() error { return show(client, request) })
}

// show prints the answer's body; a status from 400 on is an error.
func show(client *http.Client, request *http.Request) error {
	answer, err := client.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if _, err = io.Copy(os.Stdout, answer.Body); err == nil && answer.StatusCode >= http.StatusBadRequest {
		err = fmt.Errorf("status %s", answer.Status)
	}
	return err
}

func udp(arguments []string) error {
	how := newAttempts("udp")
	_ = how.flags.Parse(arguments)
	return how.try(func() error {
		socket, err := net.Dial("udp", how.flags.Arg(0))
		if err != nil {
			return err
		}
		defer socket.Close()
		_ = socket.SetDeadline(time.Now().Add(how.timeout()))
		if _, err = socket.Write([]byte("datagram")); err != nil {
			return err
		}
		buffer := make([]byte, 2048)
		length, err := socket.Read(buffer)
		if err == nil {
			_, err = os.Stdout.Write(buffer[:length])
		}
		return err
	})
}

func resolve(arguments []string) error {
	context, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	addresses, err := net.DefaultResolver.LookupHost(context, strings.Join(arguments, ""))
	fmt.Println(strings.Join(addresses, " "))
	return err
}

func api(arguments []string) error {
	token, err := os.ReadFile(accountFolder + "token")
	if err != nil {
		return err
	}
	authority, err := os.ReadFile(accountFolder + "ca.crt")
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(authority)
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	request, err := http.NewRequest(http.MethodGet, "https://kubernetes.default.svc"+strings.Join(arguments, ""), nil)
	if err != nil {
		return err
	}
	request.Header.Set("Authorization", "Bearer "+string(token))
	return show(client, request)
}
