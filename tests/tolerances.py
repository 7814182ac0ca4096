"""Every tolerance of the tests: a name, a number and a reason. What is not here is compared bit for bit."""

# Softmax probability, absolute, host against NumPy. The host keeps a running sum over up to 128 classes and
# takes expf from the C library, a GPU its own instruction (1e-7); NumPy sums at the end, with its own exp: about 2
# roundings of 6e-8 per class.
PROBABILITY = 2e-5

# A constant field through weights and back, relative: the sum over 8 windows, its division by the total
# weight in two steps and the two interpolations round about 20 times by 6e-8.
CONSTANT_FIELD = 2e-6

# float32 against the same interpolation in float64, relative to the largest logit: about 10 roundings of
# 6e-8 each.
INTERPOLATION = 2e-6

# Logits of the whole window road against MONAI's, over the range of MONAI's logits. Both run the same network
# on the same windows; sums over up to 8 windows are rounded in another order, and OpenVINO's convolutions
# differ from PyTorch's in the last bits.
LOGIT_PARITY = 1e-4

# Instance norm in fp32 against float64, absolute, of values with a deviation of one: means over 96 values three times
# over, each off by at most 96 roundings of 6e-8 and by far less in the mean; measured 1e-6. OpenVINO's own norm: 3e-4.
INSTANCE_NORM = 5e-6

# A product of three axis totals against the sum of products over windows in float64, relative: about 30
# float32 roundings of 6e-8.
WEIGHT_TOTAL = 2e-6

# float32 resampling with weights rounded to float32, relative to the largest value: about 30 roundings.
RESAMPLING = 2e-6

# A linear ramp after resampling to a coarser grid, in source voxels: a triangle sampled at whole voxels has its
# centre off by up to 0.086 (at a ratio of 1.21) where the ratio is no whole number, by 0 where it is.
RAMP_VOXELS = 0.09

# The smooth phantom on another grid and back, in intensities of 0 to 100: linear interpolation errs by
# curvature * spacing^2 / 8, and the widened triangle by about twice that: 100 / 10^2 * 3^2 / 8 = 1.1, three times.
SMOOTH_PHANTOM = 3.5

# Network outputs against the original code's, relative in the Euclidean norm: both sum up to 10^4 fp32 products
# per voxel and layer, in an order that differs by machine; the issue's own bound.
NETWORK_ORACLE = 1e-5

# Labels of one scan stored in 48 orientations, Dice: flips change the order in which fp32 sums are taken, and
# so only voxels at a tie.
REORIENTED_DICE = 0.995

# What nearest neighbour adds to it: a label moves by up to half the diagonal of a working voxel, 0.87 mm, where
# the phantom climbs by 100 / 10 * 0.61 per mm.
NEAREST_PHANTOM = 5.5

# Weights and running statistics after four steps in two processes against one, absolute: sums over the batch are taken
# in another order. Statistics: measured 5e-4; with each process' own batches 2.7e-2. Weights: AdamW divides each
# gradient by its own size, so that the rounding of one near zero moves its weight by a learning rate (1e-3) and more;
# measured for 2 in 1000 of a layer's weights, up to 2e-3, so one in a hundred of all may. Mean over all: measured
# 4e-5; of gradients that have nothing in common 1.9e-3. Mean of a layer, statistics too: measured 1.03e-4.
TWO_PROCESSES = 1e-3
TWO_PROCESSES_WEIGHT = 4e-3
TWO_PROCESSES_BEYOND = 0.01
TWO_PROCESSES_MEAN = 1e-4
TWO_PROCESSES_LAYER_MEAN = 4e-4

# Distances between voxel centres, mm: SimpleITK takes the root in float32 of sums that SciPy takes in float64.
SURFACE_MM = 1e-4

# The same where instance norms take the mean away, which the rounding does not leave with: against our network in
# float64 the recorded fp32 outputs are themselves off by 1.6e-5 (features after the norm) and 1.3e-5 (anatomix-dev).
NORMALISED_ORACLE = 4e-5

# Positions of a DICOM series against its ground-truth NIfTI, mm: float32 headers of directions, over 240 mm, and
# an enhanced image whose slices lie 5e-4 mm off a straight line.
DICOM_GROUND_TRUTH_MM = 1e-3

# Rescaled DICOM values against a ground truth in float32, relative to the largest: 2 roundings of 6e-8.
DICOM_RESCALED = 2e-7

# Percentiles, relative, against NumPy's in float64: the ranks' values are exact, the line between them is taken in
# another order.
PERCENTILE = 1e-12

# Mean and standard deviation of intensities that were rounded to 16 bits, relative to their range: half a level of
# rounding in each, and float64 sums of squares.
LEVEL = 1 / 65535

# A norm in fp32 against float64, outputs and gradients, relative in the Euclidean norm: sums over 2 * 32^3 values less
# one of them, in parts; measured 3e-7. PyTorch's own batch norm, channels last, on a CPU: up to 5e-5.
NORMALISED = 1e-6

# A convolution in fp32 against float64, outputs and gradients: sums of 162 products, relative in the Euclidean norm.
HALVES = 1e-6

# Gradients of one convolution in bf16 against fp32, relative in the Euclidean norm: inputs and outputs keep eight bits.
BF16_GRADIENT = 2e-2

# Golden windows of a real head in eight bits against fp32, root mean square, relative to the logits' range: half of one
# of 256 steps, grown over some forty layers.
EIGHT_BIT_LOGITS = 2e-2

# A decoder's convolution with its upsampling folded in, float32, relative to the largest output: a thousand products in
# another order.
UPSAMPLED_CONVOLUTION = 1e-5

# Whole networks and their gradients in float64, a convolution before upsampling against one after it: sums of up to a
# thousand products in another order, each rounded by 1e-16, through seven batch norms; measured 1e-13.
JOINED_TAPS = 1e-9

# A blur in float32 against float64, absolute, of values up to one: nine roundings of 6e-8.
BLUR = 1e-6

# Where a ball of 7 voxels lies after augmentation, image against label, voxels, mean of 30 draws: labels move by the
# nearest voxel, coarse voxels' borders fall between fine ones, ringing is cut off at 0. Measured at most 0.04, by
# ringing; with a coarse voxel's first fine one 0.9.
MOVED_VOXELS = 0.1
# How far apart two blobs are after a turn, relative: interpolation between slices of 4 mm, and blobs' ends outside the
# crop. Measured at most 0.003; turned in voxels in place of millimetres it is up to 0.7 and 1.0.
TURNED_LENGTH = 0.01
