_base_ = '../_base_/ssn-tiny_1xb4-200_toy-96x96.py'
